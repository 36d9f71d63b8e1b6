"""From `celora submit` to files that others load, and a question answered: every part is real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import celora
from celora.views import Job
from models.queries.gpus import list_gpus
from models.session import transaction
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(stack: Stack) -> Stack:
    stack.start("dispatcher")
    stack.start("cpu-worker")
    stack.start("gpu-worker", "--devices", "cpu:1")

    def free() -> bool:
        with transaction() as session:
            return [gpu.state for gpu in list_gpus(session)] == ["free"]

    stack.wait_until("the GPU slot is free", free, seconds=120)
    return stack


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama", initializer_range=0.05)


@pytest.fixture(scope="module", params=["lora", "qlora"])
def job(running: Stack, base: Path, shared_data: Path, request: pytest.FixtureRequest) -> Job:
    fields: dict[str, Any] = {
        "base_model": str(base),
        "dataset": str(shared_data / "gsm8k-train.jsonl"),
        "columns": {"instruction": "question", "output": "answer"},
        "adapter_name": f"sums-{request.param}",
        "method": request.param,
        "max_steps": 12,
        "max_sequence_length": 128,
        "learning_rate": 3e-3,
        "evaluate": False,
    }
    job_id = celora.submit(**fields).id
    running.wait_until("it ends", lambda: celora.get(job_id).finished, seconds=300)
    ended = celora.get(job_id)
    assert ended.state == "completed", ended.error
    return ended


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf-ready"])
def test_an_export_is_copied_to_a_folder_with_what_loads_it(
    running: Stack, job: Job, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / form
    reference = f"sums-{job.method}/1"
    told = running.run("export", reference, "--format", form, "-o", str(folder))
    print(told.stdout)
    assert f"written as    {form}".split()[-1] in told.stdout
    assert str(folder) in told.stdout
    assert ("vllm serve" in told.stdout) is (form != "gguf-ready")
    report = json.loads((folder / "export.json").read_text())
    assert report["prompts"] == "held-out rows"
    assert ("shift_from_nf4" in report) is (form != "adapter" and job.method == "qlora")
    if form == "adapter":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(job.base_model)
        config: Any = PeftModel.from_pretrained(model, str(folder)).peft_config["default"]
        assert config.r == 16
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
        assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]


def test_one_question_is_answered_as_json(running: Stack, job: Job) -> None:
    told = running.run(
        "chat", job.id, "--prompt", "How much is 6 × 7?", "--max-new-tokens", "8", "--json"
    )
    print(told.stderr, told.stdout)
    answer = json.loads(told.stdout)
    assert (answer["subject"], answer["reference"]) == ("tuned", job.id)
    assert 1 <= answer["tokens"] <= 8
    chat = celora.get(answer["job"])
    running.wait_until("it ends", lambda: celora.get(chat.id).finished)
    assert celora.get(chat.id).state == "completed"
    shown = running.run("job", answer["job"])
    assert f"chat, of {job.id}" in shown.stdout
    print(running.run("jobs").stdout)

"""Whole jobs with every real part: RabbitMQ, Postgres, real processes, the real trainer, real rows.

Only the base model is small: a random Llama that is made on the spot.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import celora
from celora.views import Job
from models.errors import GateError
from models.queries.gpus import list_gpus
from models.queries.jobs import find_by_key
from models.session import transaction
from models.settings import settings
from models.tables import Evaluation, Sample
from tests.foreign_app import foreign_app
from tests.postgres_server import free_port
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.torch]

STEPS = 12
COLUMNS = {"prompt": "question", "completion": "answer"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def running(stack: Stack) -> Stack:
    """Dispatcher, cpu worker and one GPU slot, all up."""
    stack.start("dispatcher")
    stack.start("cpu-worker")
    stack.start("gpu-worker", "--devices", "cpu:1")

    def free() -> bool:
        with transaction() as session:
            return [gpu.state for gpu in list_gpus(session)] == ["free"]

    stack.wait_until("the GPU slot is free", free, seconds=60)
    return stack


@pytest.fixture(scope="module")
def fields(base: Path, shared_data: Path) -> dict[str, Any]:
    """A small job on GSM8K, under the data set's own column names."""
    return {
        "base_model": str(base),
        "dataset": str(shared_data / "gsm8k-train.jsonl"),
        "columns": COLUMNS,
        "max_steps": STEPS,
        "max_sequence_length": 128,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "log_every_steps": 1,
        "checkpoint_every_steps": 5,
        "validation_fraction": 0.01,
        "eval_generate_rows": 3,
        "eval_max_new_tokens": 8,
        "eval_answer_pattern": r"#### (\S+)",
    }


def finish(stack: Stack, job_id: str, *, seconds: float = 180) -> Job:
    stack.wait_until(f"{job_id} ends", lambda: celora.get(job_id).finished, seconds=seconds)
    return celora.get(job_id)


@pytest.fixture(scope="module")
def lora(running: Stack, fields: dict[str, Any]) -> Job:
    named: dict[str, Any] = {"name": "lora on gsm8k", "adapter_name": "gsm8k"}
    return finish(running, celora.submit(**fields, **named, method="lora").id)


def test_a_lora_job_completes(lora: Job) -> None:
    assert lora.state == "completed", lora.error
    assert (lora.step, lora.total_steps) == (STEPS, STEPS)
    assert lora.result is not None
    assert lora.error is None
    assert lora.gpu_seconds > 0
    kinds = [event.kind for event in celora.events(lora)]
    assert kinds[0] == "submitted"
    assert kinds[-1] == "completed"


def test_its_adapter_is_a_version_with_all_it_was_made_from(lora: Job) -> None:
    (made,) = celora.adapters(name="gsm8k")
    assert (made.reference, made.job_id, made.url) == ("gsm8k/1", lora.id, lora.adapter_url)
    assert (made.data_digest, made.base_revision) == (lora.data_digest, lora.base_revision)
    assert (made.seed, made.rank, made.kind) == (lora.spec.seed, lora.spec.rank, "adapter")
    assert made.digest is not None
    assert {"celora", "torch", "peft"} <= set(made.code_versions)
    assert set(made.evaluation) == {"base", "tuned"}
    assert made.registered_by == lora.user


@pytest.mark.slow
def test_a_bad_adapter_is_refused_by_a_gate(
    running: Stack, lora: Job, fields: dict[str, Any]
) -> None:
    """One that has learned nothing: it is no better than its base, and worse than the holder."""
    named: dict[str, Any] = {"adapter_name": "gsm8k", "learning_rate": 1e-12}
    bad = finish(running, celora.submit(**fields, **named, method="lora").id)
    assert bad.state == "completed", bad.error
    gate = ("adapters", "gate", "gsm8k", "production", "loss", "--against")
    running.run(*gate, "base", "--least", "0.01")
    running.run(*gate, "holder")
    assert "✓ loss" in running.run("adapters", "alias", "gsm8k", "production", "1").stdout
    refused = running.run("adapters", "alias", "gsm8k", "production", "2", check=False)
    assert refused.returncode == GateError.exit_code
    assert "stays at version 1: loss on held-out rows" in refused.stderr
    assert "of the base of gsm8k/2" in refused.stderr
    assert "of gsm8k/1" in refused.stderr
    assert celora.adapter("gsm8k@production").job_id == lora.id


def test_the_verdict_tells_what_the_data_was(lora: Job) -> None:
    verdict = lora.verdict
    assert verdict is not None
    assert verdict["shape"] == "prompt_completion"
    assert COLUMNS.items() <= verdict["columns"].items()
    dropped = sum(verdict["dropped"].values())
    assert verdict["rows_read"] == 7473
    assert verdict["rows_train"] + verdict["rows_eval"] + dropped == 7473
    assert verdict["digests"]["data"]


def test_the_curve_has_every_step_once(lora: Job) -> None:
    losses = [point.step for point in celora.metrics(lora, "train_loss")]
    assert losses == list(range(1, STEPS + 1))
    names = {point.name for point in celora.metrics(lora)}
    assert {"train_loss", "learning_rate", "grad_norm", "tokens_per_second"} <= names


def test_the_adapter_loads_and_its_card_tells_how_it_was_made(lora: Job, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert lora.adapter_url is not None
    folder = Path(lora.adapter_url)
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert any("lora_A" in name for name, _ in adapted.named_parameters())

    card = (folder / "README.md").read_text()
    assert lora.data_digest is not None
    assert lora.data_digest[:12] in card
    assert "huggingface/hub" not in card  # a cache path says nothing to anybody else
    assert str(settings().at_home()) not in card


def test_base_and_tuned_are_evaluated_on_the_same_rows(lora: Job) -> None:
    with transaction() as session:
        rows = session.query(Evaluation).filter_by(job_id=lora.id).all()
        found = {row.subject: row for row in rows}
        samples = session.query(Sample).filter_by(job_id=lora.id).count()
    assert set(found) == {"base", "tuned"}
    assert found["base"].rows == found["tuned"].rows > 0
    assert found["tuned"].generated_rows == 3
    assert found["tuned"].loss < found["base"].loss
    assert found["tuned"].exact_match is not None
    assert samples > 0


def test_a_job_begins_with_the_adapter_of_the_one_before_it(
    running: Stack, fields: dict[str, Any]
) -> None:
    """Both hold out no row: what was trained is kept all the same, and says so."""
    # Nothing but the beginning tells the second from the first: the same rows in the same order.
    alike = fields | {"validation_fraction": 0, "dropout": 0, "learning_rate": 1e-2}
    first = celora.submit(**alike)
    second = celora.submit(**alike, after=first.id, start_from_adapter=True)
    before, after = finish(running, first.id), finish(running, second.id)
    assert (before.state, after.state) == ("completed", "completed"), after.error
    for job in (before, after):
        assert job.verdict is not None
        assert any("no row is held out" in warning for warning in job.verdict["warnings"])
        assert "evaluation_skipped" in [event.kind for event in celora.events(job)]
        assert job.result is not None
        assert "evaluation" not in job.result
    assert before.result is not None
    assert after.result is not None
    assert before.result["began_with_adapter_of"] is None
    assert after.result["began_with_adapter_of"] == first.id
    assert after.adapter_url is not None
    assert first.id in (Path(after.adapter_url) / "README.md").read_text()
    fresh, further = (celora.metrics(job, "train_loss")[0].value for job in (before, after))
    assert further < fresh


def test_a_qlora_job_completes_on_the_warm_worker(running: Stack, fields: dict[str, Any]) -> None:
    job = finish(running, celora.submit(**fields, method="qlora").id)
    assert job.state == "completed", job.error
    losses = [point.value for point in celora.metrics(job, "train_loss")]
    assert len(losses) == STEPS
    # The same data under the same settings: prepared once.
    assert job.data_digest is not None


def test_bad_data_fails_in_preprocessing_and_names_the_lines(
    running: Stack, fields: dict[str, Any], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    rows = ['{"question": "1+1?", "answer": "2"}'] * 3
    rows[1:1] = ['{"question": "2+2?", "answer": ', '{"question": "3+3?", "answer": 6}']
    broken.write_text("\n".join(rows))
    job = finish(running, celora.submit(**fields | {"dataset": str(broken)}).id, seconds=60)
    assert (job.state, job.stage) == ("failed", "preprocess")
    assert job.gpu_seconds == 0
    assert job.error is not None
    assert job.error["code"] == "invalid_data"
    assert {problem["line"] for problem in job.error["problems"]} == {2, 3}
    assert all(problem["remedy"] for problem in job.error["problems"])


def test_a_celery_app_that_knows_only_the_broker_can_submit(
    running: Stack, fields: dict[str, Any], broker: str
) -> None:
    short = fields | {"max_steps": 2, "evaluate": False}

    def submitted(task_id: str) -> str:
        return running.wait_until(
            "the job is on record under the task's id", lambda: _id_of(task_id), seconds=30
        )

    with foreign_app(broker) as client:
        sent = client.send_task("celora.submit", [short]).id
        job_id = submitted(sent)
        assert finish(running, job_id).state == "completed"
        # The same task again finds its job; one that is sent after it shows that it was handled.
        client.send_task("celora.submit", [short], task_id=sent)
        last = submitted(client.send_task("celora.submit", [short]).id)
    celora.cancel(last)
    assert [job.id for job in celora.jobs(limit=2)] == [last, job_id]


def _id_of(task_id: str) -> str | None:
    with transaction() as session:
        job = find_by_key(session, "default", task_id)
        return job.id if job else None


@pytest.fixture(scope="module")
def flower(running: Stack) -> str:
    """The base URL of a Flower beside the workers, with its login."""
    port = free_port()
    running.start(
        "flower",
        "--port",
        str(port),
        CELORA_FLOWER_USER="ada",
        CELORA_FLOWER_PASSWORD="engine",
        FLOWER_UNAUTHENTICATED_API="",
    )
    return f"http://127.0.0.1:{port}"


def _ask(flower: str, path: str) -> Any:
    login = base64.b64encode(b"ada:engine").decode()
    request = urllib.request.Request(  # noqa: S310 (loopback)
        f"{flower}{path}", headers={"Authorization": f"Basic {login}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 (loopback)
            return json.load(reply)
    except OSError:
        return {}


def test_flower_shows_workers_and_tasks(
    running: Stack, fields: dict[str, Any], flower: str
) -> None:
    host = settings().resolved_host
    workers = {f"cpu@{host}", f"gpu0@{host}"}
    running.wait_until(
        "Flower sees both workers",
        lambda: workers <= set(_ask(flower, "/api/workers?refresh=1")),
        seconds=60,
    )
    job = finish(running, celora.submit(**fields | {"max_steps": 2}).id)
    assert job.state == "completed", job.error

    def seen() -> bool:
        tasks = _ask(flower, "/api/tasks").values()
        ran = {task["name"] for task in tasks if job.id in str(task["args"])}
        return ran >= {"celora.preprocess", "celora.train", "celora.evaluate"}

    running.wait_until("Flower shows the job's three stages", seen, seconds=30)


def test_the_command_tells_all_of_a_job(running: Stack, lora: Job) -> None:
    told = json.loads(running.run("job", lora.id, "--json").stdout)
    text = json.dumps(told)
    assert lora.id in text
    for part in ("verdict", "attempts", "checkpoints", "events", "evaluations"):
        assert part in told, sorted(told)


def test_a_dpo_job_moves_the_held_out_answers_apart(running: Stack, base: Path) -> None:
    pairs = Path(__file__).parents[2] / "examples" / "smart_home_preferences" / "pairs.jsonl"
    asked = celora.submit(
        base_model=str(base),
        dataset=str(pairs),
        method="dpo",
        max_steps=8,
        batch_size=2,
        gradient_accumulation=2,
        learning_rate=1e-3,
        eval_every_steps=4,
        validation_fraction=0.1,
        eval_generate_rows=2,
        eval_max_new_tokens=4,
    )
    job = finish(running, asked.id)
    assert job.state == "completed", job.error
    assert job.verdict is not None
    assert job.verdict["shape"] == "preference"
    margins = [point.value for point in celora.metrics(job, "rewards/margins")]
    assert len(margins) == 8
    assert margins[0] == pytest.approx(0, abs=1e-4)
    first, last = (point.value for point in celora.metrics(job, "eval_rewards/margins"))
    assert 0 < first < last
    measured = {point.name: point.value for point in celora.metrics(job) if "/" in point.name}
    assert measured["base/reward_margin"] == 0
    assert measured["tuned/reward_margin"] == pytest.approx(last, rel=1e-3)
    shown = running.run("job", job.id).stdout
    assert "reward margin" in shown
    assert "preferred answer more probable" in shown


def test_the_workers_stop_cleanly(running: Stack) -> None:
    """Last in this file: nothing of the stack is left after a SIGTERM."""
    for process in list(reversed(running.running)):
        assert running.stop(process) == 0, process.said()[-2000:]

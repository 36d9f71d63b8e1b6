"""Exports and chats on a real trainer: its files in others' hands, its answers, its warm base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_worker.protocol import AnswerPart, Exported, Failed, Run, Stop, Stopped, Turn
from tests.trainer_driver import Trainer, make_run, trained

pytestmark = pytest.mark.torch

FINAL = (Exported, Stopped, Failed)


# The quick run has the one that has all steps of the other, and the quantised base besides.
@pytest.fixture(scope="module", params=[pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapter(warm: Trainer, base: Path, data: Path, tmp_path: Path, method: str) -> Path:
    run = make_run(base, data, tmp_path / "run", method=method, max_steps=8, learning_rate=5e-3)
    return Path(trained(warm.run(run)).path)


def work_on(base: Path, adapter: Path, output: Path, stage: str, **work: object) -> Run:
    """A command for the adapter's own method, as the supervisor sends it."""
    spec = {"method": "qlora" if "qlora" in str(output) else "lora"}
    given = {"reference": "ftjob-x", "url": str(adapter), "kind": "adapter"} | work
    return make_run(
        base, Path(), output, adapter_path=str(adapter), work=given, stage=stage, **spec
    )


def exported(warm: Trainer, run: Run) -> Exported:
    warm.send(run)
    message = warm.wait_for(*FINAL)
    assert isinstance(message, Exported), message
    return message


def test_what_is_exported_is_what_was_trained(
    warm: Trainer, base: Path, tmp_path: Path, adapter: Path, method: str
) -> None:
    as_adapter = exported(
        warm, work_on(base, adapter, tmp_path / f"{method}-a", "export", format="adapter")
    )
    names = {path.name for path in Path(as_adapter.path).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert as_adapter.report["difference"]["max_difference"] == 0
    assert (as_adapter.report["rank"], as_adapter.report["concerns"]) == (4, [])

    merged = exported(
        warm, work_on(base, adapter, tmp_path / f"{method}-m", "export", format="gguf-ready")
    )
    report = merged.report
    difference, effect = report["difference"], report["adapter_effect"]
    assert 0 < difference["mean_difference"] < effect["mean_difference"] / 10
    assert difference["mean_kl"] < report["tolerance"]["mean_kl"]
    assert report["layers_changed"] == report["layers"] == 14
    assert report["concerns"] == []
    if method == "qlora":  # NF4 is much coarser than bfloat16
        assert report["shift_from_nf4"]["mean_difference"] > 3 * difference["mean_difference"]
    else:
        assert "shift_from_nf4" not in report
    _others_load_it(Path(merged.path), base)

    warm.forget()  # whoever follows finds the base as it was loaded
    chat = work_on(base, adapter, tmp_path / f"{method}-c", "generate", max_new_tokens=4)
    chat_once(warm, chat)
    assert (warm.checked().warm, warm.checked().differences) == (True, [])


def _others_load_it(folder: Path, base: Path) -> None:
    """In another library than ours: bfloat16 shards with the base's names, its own tokenizer."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    def tensors(place: Path) -> dict[str, list[int]]:
        found = {}
        for path in sorted(place.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    found[name] = file.get_slice(name).get_shape()
                    if place is folder:
                        assert file.get_slice(name).get_dtype() == "BF16"
        return found

    # A head that is tied to the embedding may be left out.
    assert tensors(base).items() >= tensors(folder).items()
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (
        own.encode("hello").ids
        == Tokenizer.from_file(str(base / "tokenizer.json")).encode("hello").ids
    )


def chat_once(warm: Trainer, run: Run) -> None:
    warm.send(run)
    warm.send(Turn(position=1, subject="tuned", prompt="hello there"))
    warm.send(Turn(position=2, subject="base", prompt="hello there"))
    warm.wait_for(AnswerPart, matching=lambda part: part.position == 2 and part.whole)
    warm.send(Stop(reason="cancel"))
    assert isinstance(warm.wait_for(*FINAL), Stopped)


def answers(warm: Trainer) -> dict[int, str]:
    found: dict[int, str] = {}
    for part in warm.all(AnswerPart):
        found[part.position] = found.get(part.position, "") + part.text
    return found


def test_a_chat_answers_by_turns_and_stops_in_the_middle_of_one(
    warm: Trainer, base: Path, tmp_path: Path, adapter: Path, method: str
) -> None:
    work = {"max_new_tokens": 12, "layout": "plain"}
    chat_once(warm, work_on(base, adapter, tmp_path / f"{method}-1", "generate", **work))
    first = answers(warm)
    warm.forget()
    chat_once(warm, work_on(base, adapter, tmp_path / f"{method}-2", "generate", **work))
    assert answers(warm) == first  # greedy, and without a history: the same again
    assert warm.all(AnswerPart)[-1].tokens <= 12
    warm.forget()
    long = work_on(base, adapter, tmp_path / f"{method}-3", "generate", max_new_tokens=20_000)
    warm.send(long)
    warm.send(Turn(position=1, subject="tuned", prompt="hello"))
    refused = warm.wait_for(AnswerPart)
    assert refused.whole
    assert "with room for an answer" in (refused.error or "")
    warm.send(Stop(reason="drain"))
    assert isinstance(warm.wait_for(*FINAL), Stopped)


@pytest.mark.slow
def test_an_export_that_rounding_spoils_is_refused_with_its_figures(
    warm: Trainer, data: Path, tmp_path: Path
) -> None:
    """Eight layers of large random weights make much of little: bfloat16 is too coarse for them."""
    from gpu_worker.trainer.tiny_base import random_base

    chaotic = random_base(tmp_path / "base", layers=8, initializer_range=0.3)
    run = make_run(chaotic, data, tmp_path / "run", max_steps=2, learning_rate=5e-3)
    adapter = Path(trained(warm.run(run)).path)
    output = tmp_path / "lora"
    warm.send(work_on(chaotic, adapter, output, "export", format="merged"))
    failed = warm.wait_for(*FINAL)
    assert isinstance(failed, Failed), failed
    assert failed.error["code"] == "export_differs"
    assert "allowed: mean KL at most 0.01 nats" in failed.error["message"]
    assert list(output.iterdir()) == []

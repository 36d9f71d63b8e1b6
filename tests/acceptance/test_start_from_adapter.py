"""A job that begins with an earlier job's adapter, in the real trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from gpu_worker.protocol import Failed, Started, Trained
from tests.trainer_driver import Trainer, make_run, prepared_data, trained

pytestmark = pytest.mark.torch

# One step sees all rows: its loss does not hang on their order.
WHOLE: dict[str, Any] = {"batch_size": 8, "gradient_accumulation": 1, "dropout": 0, "max_steps": 1}
BEGINS: dict[str, Any] = {"after": "ftjob-first", "start_from_adapter": True}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("rows"), rows=8)


@pytest.fixture
def first(warm: Trainer, base: Path, rows: Path, tmp_path: Path) -> Trained:
    run = make_run(base, rows, tmp_path / "first", max_steps=20, learning_rate=1e-2, dropout=0)
    result = trained(warm.run(run))
    warm.forget()
    return result


def loss_of(base: Path, adapter: str, rows: Path) -> float:
    """What the saved model gives on all rows, per labelled token; nothing of ours computes it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, adapter).eval()
    with pa.OSFile(str(rows / "train.arrow")) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all().to_pydict()
    total, tokens = 0.0, 0
    for ids, labels in zip(table["input_ids"], table["labels"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        target = torch.tensor(labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        tokens += int((target != -100).sum())
    return total / tokens


def test_its_first_loss_is_that_of_the_first_jobs_model(
    warm: Trainer, base: Path, rows: Path, tmp_path: Path, first: Trained
) -> None:
    fresh = trained(warm.run(make_run(base, rows, tmp_path / "fresh", **WHOLE)))
    started_anew = warm.values("train_loss")[1]
    warm.forget()
    run = make_run(base, rows, tmp_path / "next", start_adapter_path=first.path, **WHOLE, **BEGINS)
    result = trained(warm.run(run))
    assert warm.values("train_loss")[1] == pytest.approx(loss_of(base, first.path, rows), abs=1e-5)
    assert warm.values("train_loss")[1] < started_anew - 0.1
    assert result.digest != fresh.digest
    assert result.result["began_with_adapter_of"] == "ftjob-first"
    assert fresh.result["began_with_adapter_of"] is None
    card = Path(result.path, "README.md").read_text()
    assert "began with | the adapter of job `ftjob-first`" in card
    assert "began with" not in Path(fresh.path, "README.md").read_text()
    assert warm.checked().differences == []


def test_a_checkpoint_wins_over_it(
    warm: Trainer, base: Path, data: Path, tmp_path: Path, first: Trained
) -> None:
    fields: dict[str, Any] = {"checkpoint_every_steps": 2, "dropout": 0.1, **BEGINS}
    run = make_run(base, data, tmp_path / "whole", start_adapter_path=first.path, **fields)
    whole = trained(warm.run(run))
    losses, saved = warm.values("train_loss"), warm.checkpoints()[0]
    warm.forget()
    rest = run.model_copy(update={"output_path": str(tmp_path / "rest"), "resume_from": saved.path})
    again = trained(warm.run(rest))
    assert warm.all(Started)[-1].start_step == saved.step == 2
    assert warm.values("train_loss") == {s: v for s, v in losses.items() if s > 2}
    assert again.digest == whole.digest
    assert again.result["resumed_at_step"] == 2


def test_an_adapter_of_another_kind_is_refused_by_name(
    warm: Trainer, base: Path, rows: Path, tmp_path: Path, first: Trained
) -> None:
    def refused(**fields: Any) -> dict[str, Any]:
        run = make_run(
            base, rows, tmp_path / "x", start_adapter_path=first.path, **WHOLE, **BEGINS, **fields
        )
        message = warm.run(run)
        assert isinstance(message, Failed)
        assert message.error["remedy"]
        assert message.traceback is None
        return message.error

    assert refused(rank=8)["where"] == "rank"
    assert refused(target_modules=("q_proj",))["where"] == "target_modules"
    weights = Path(first.path, "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be read" in refused()["message"]
    weights.unlink()
    assert "cannot be read" in refused()["message"]
    config = Path(first.path, "adapter_config.json")
    config.write_text(json.dumps({"r": 4}))
    assert "cannot be read" in refused()["message"]
    trained(warm.run(make_run(base, rows, tmp_path / "after", **WHOLE)))
    assert warm.checked().warm
    assert warm.checked().differences == []

"""A trainer that was stopped or killed goes on from its checkpoints, and where it does not, why."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from gpu_worker.protocol import CheckpointSaved, Failed, Metrics, Started, Stop, Stopped
from tests.trainer_driver import Trainer, make_run, moment_types, prepared_data, trained

pytestmark = pytest.mark.torch


@pytest.mark.slow  # half a minute
def test_full_trains_in_a_fresh_process_resumes_to_the_bit_and_leaves(
    base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"method": "full", "max_steps": 5, "checkpoint_every_steps": 2}
    with Trainer() as trainer:
        whole = trained(trainer.run(make_run(base, data, tmp_path / "whole", **fields)))
        losses, saved = trainer.values("train_loss"), trainer.checkpoints()
        assert trainer.process.wait(timeout=30) == 0
    assert whole.kind == "model"
    assert whole.result["trainable_parameters"] == whole.result["total_parameters"]
    before = load_file(base / "model.safetensors")
    after = load_file(Path(whole.path, "model.safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert {name for name in before if name.endswith("proj.weight")} <= changed
    assert json.loads(Path(whole.path, "config.json").read_text())["use_cache"] is True

    with Trainer() as trainer:
        run = make_run(base, data, tmp_path / "rest", resume_from=saved[0].path, **fields)
        rest = trained(trainer.run(run))
    assert trainer.values("train_loss") == {s: v for s, v in losses.items() if s > saved[0].step}
    assert rest.digest == whole.digest


# bitsandbytes keeps the moments of weights below 4096 numbers in 32 bits: rank 64 × hidden 64.
RESUMABLE: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "lora", "optimizer": "adamw_bnb_8bit", "rank": 64},
    {"method": "qlora", "rank": 64},
]


@pytest.mark.parametrize("fields", RESUMABLE, ids=lambda f: f"{f['method']}-{f.get('optimizer')}")
@pytest.mark.parametrize("packed", [None, 96], ids=["rows", "packs"])
def test_any_checkpoint_resumes_to_the_bit(
    warm: Trainer, base: Path, tmp_path: Path, fields: dict[str, Any], packed: int | None
) -> None:
    """Ten steps over two and a half epochs; from every other step to the end again."""
    prepared = prepared_data(tmp_path / "data", rows=60 if packed else 15, packed_to=packed)
    size: dict[str, Any] = {"batch_size": 1 if packed else 2} | {"max_steps": 10, **fields}
    whole = trained(
        warm.run(make_run(base, prepared, tmp_path / "all", checkpoint_every_steps=1, **size))
    )
    losses = warm.values("train_loss")
    saved = {c.step: c for c in warm.checkpoints()}
    assert sorted(saved) == list(range(1, 10))
    if "rank" in fields:
        assert moment_types(Path(saved[5].path)) == {torch.uint8}
    parameters = warm.all(Started)[-1].trainable_parameters
    for step in range(1, 10, 2):
        warm.forget()
        run = make_run(
            base, prepared, tmp_path / f"from{step}", resume_from=saved[step].path, **size
        )
        result = trained(warm.run(run))
        assert warm.all(Started)[-1].start_step == step
        assert warm.all(Started)[-1].trainable_parameters == parameters
        assert warm.values("train_loss") == {s: v for s, v in losses.items() if s > step}
        assert result.digest == whole.digest
        assert result.trained_tokens == whole.trained_tokens


def test_signals_are_ignored_and_a_killed_run_goes_on_from_its_checkpoint(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"max_steps": 400, "checkpoint_every_steps": 3}
    with Trainer() as killed:
        killed.send(make_run(base, data, tmp_path / "killed", **fields))
        killed.wait_for(Metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            killed.process.send_signal(number)
        step = killed.all(Metrics)[-1].step
        saved = killed.wait_for(CheckpointSaved, matching=lambda c: c.step > step + 3)
        killed.process.kill()
        killed.process.wait()
        killed.wait_for_end()
    losses = killed.values("train_loss")
    run = make_run(base, data, tmp_path / "next", resume_from=saved.path, **fields)
    warm.send(run)
    warm.wait_for(Metrics, matching=lambda m: m.step >= max(losses, default=0))
    warm.send(Stop(reason="cancel"))
    warm.wait_for(Stopped)
    both = losses.keys() & warm.values("train_loss").keys()
    assert {s: losses[s] for s in both} == {s: warm.values("train_loss")[s] for s in both}


def test_a_smaller_micro_batch_goes_on_with_the_same_rows(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    """As after exhausted memory: half the micro-batch, twice the accumulation."""
    fields: dict[str, Any] = {"dropout": 0, "checkpoint_every_steps": 2}
    whole = trained(warm.run(make_run(base, data, tmp_path / "whole", **fields)))
    losses, saved = warm.values("train_loss"), warm.checkpoints()[0]
    warm.forget()
    run = make_run(base, data, tmp_path / "rest", resume_from=saved.path, **fields)
    smaller = run.model_copy(update={"batch_size": 1, "gradient_accumulation": 4})
    assert trained(warm.run(smaller)).trained_tokens == whole.trained_tokens
    rest = warm.values("train_loss")
    assert rest == pytest.approx({s: losses[s] for s in rest}, abs=1e-5)
    assert list(rest) == [3, 4]


def test_a_stop_writes_a_checkpoint_from_which_the_run_goes_on(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    size: dict[str, Any] = {"max_steps": 60, "log_every_steps": 50}
    whole = trained(warm.run(make_run(base, data, tmp_path / "whole", **size)))
    warm.forget()
    warm.send(make_run(base, data, tmp_path / "stopped", **size))
    warm.wait_for(Metrics)
    warm.send(Stop(reason="pause"))
    stopped = warm.wait_for(Stopped)
    assert stopped.reason == "pause"
    assert stopped.checkpoint_step == stopped.step
    assert 0 < stopped.step < 60
    assert not list((tmp_path / "stopped" / "checkpoints").glob(".*"))
    saved = warm.checkpoints()[-1]
    assert {"training_args.bin", "README.md"}.isdisjoint(p.name for p in Path(saved.path).iterdir())
    run = make_run(base, data, tmp_path / "rest", resume_from=saved.path, **size)
    assert trained(warm.run(run)).digest == whole.digest


def test_a_cancel_ends_the_run_at_once_and_leaves_no_checkpoint(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    warm.send(make_run(base, data, tmp_path / "job", max_steps=10_000))
    warm.wait_for(Metrics)
    warm.send(Stop(reason="cancel"))
    stopped = warm.wait_for(Stopped)
    assert (stopped.reason, stopped.checkpoint_step) == ("cancel", None)
    assert not (tmp_path / "job" / "checkpoints").exists()
    trained(warm.run(make_run(base, data, tmp_path / "next")))
    assert warm.checked().warm
    assert warm.checked().differences == []


def test_a_torn_checkpoint_is_refused_in_words(
    warm: Trainer, base: Path, data: Path, tmp_path: Path
) -> None:
    trained(warm.run(make_run(base, data, tmp_path / "1", checkpoint_every_steps=2)))
    saved = Path(warm.checkpoints()[0].path)
    with (saved / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    message = warm.run(make_run(base, data, tmp_path / "2", resume_from=str(saved)))
    assert isinstance(message, Failed)
    assert "optimizer.pt" in message.error["message"]
    assert message.error["remedy"]

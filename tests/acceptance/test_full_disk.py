"""The real trainer and the real workers on a disk that is really full."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import celora
from gpu_worker.protocol import Failed, Trained
from models.queries.products import newest_checkpoint
from models.session import transaction
from tests import records
from tests.scripted_jobs import FAST, gpus, in_state, start_gpu_worker, tries
from tests.small_disk import fill, small_disk
from tests.stack import Stack
from tests.trainer_driver import Trainer, make_run, prepared_data

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk") / "small", 16) as folder:
        yield folder


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    with Trainer() as process:
        yield process


WRITES: dict[str, dict[str, Any]] = {
    "checkpoints/step-2": {"checkpoint_every_steps": 2},
    "adapter": {"checkpoint_every_steps": 1000},
    "model": {"checkpoint_every_steps": 1000, "method": "full"},
}


@pytest.mark.parametrize(
    "case",
    [
        # Method full takes a new process each time; once without room will do in the quick run.
        pytest.param(case, id=f"{case[0]} {case[1]}", marks=[pytest.mark.slow] * slow)
        for case in itertools.product(WRITES, [0, 8_000, 40_000])
        for slow in [case[0] == "model" and case[1] > 0]
    ],
)
def test_the_trainer_says_what_found_no_room(
    base: Path, small: Path, tmp_path: Path, trainer: Trainer, case: tuple[str, int]
) -> None:
    """And goes on with the next job, but for method full, whose process never does."""
    what, room_bytes = case
    fields = WRITES[what]
    data = prepared_data(tmp_path / "data")
    output = small / f"{what.replace('/', '-')}-{room_bytes}"
    output.mkdir()
    ballast = fill(small, leave_bytes=room_bytes)
    run = make_run(base, data, output, **fields)
    if fields.get("method") == "full":
        with Trainer() as own:
            failed = own.run(run)
    else:
        failed = trainer.run(run)
    ballast.unlink()
    assert isinstance(failed, Failed), failed
    assert (failed.error["code"], failed.error["message"]) == ("setup", "the disk is full")
    assert failed.error["where"].startswith(str(output))
    assert Path(what).parts[0] in failed.error["where"]
    assert not failed.out_of_memory
    # Nothing half-written stays: neither a torn folder nor what it had taken.
    assert [path for path in output.rglob("*") if path.is_file()] == []
    if fields.get("method") != "full":
        next_one = trainer.run(make_run(base, data, tmp_path / "next"))
        assert isinstance(next_one, Trained), next_one


@pytest.mark.slow
@pytest.mark.fault(20)
@pytest.mark.broker
@pytest.mark.timeout(600)
def test_a_job_that_hit_a_full_disk_fails_and_its_worker_takes_the_next(
    stack: Stack, base: Path, small: Path, shared_data: Path
) -> None:
    """Home, store and scratch of the worker all lie on that disk."""
    place = {"CELORA_HOME": str(small / "home"), "CELORA_ARTIFACTS": str(small / "artifacts")}
    stack.environment |= place
    stack.start("dispatcher", **FAST)
    stack.start("cpu-worker", **FAST)
    worker = start_gpu_worker(stack, slots=1, **FAST)
    fields: dict[str, Any] = {
        "base_model": str(base),
        "dataset": str(shared_data / "gsm8k-train.jsonl"),
        "columns": {"prompt": "question", "completion": "answer"},
        "max_sequence_length": 64,
        "batch_size": 1,
        "gradient_accumulation": 1,
        "checkpoint_every_steps": 20,
        "validation_fraction": 0.01,
        "evaluate": False,
    }
    job_id = celora.submit(**fields, max_steps=4000).id

    def registered() -> bool:
        with transaction() as session:
            return newest_checkpoint(session, job_id) is not None

    stack.wait_until("a checkpoint is registered", registered, seconds=180)
    ballast = fill(small)
    in_state(stack, job_id, "failed", seconds=120)
    error = records.job(job_id).error
    assert error is not None
    assert (error["code"], error["message"]) == ("setup", "the disk is full")
    assert error["where"].startswith(f"{small}/artifacts/jobs/{job_id}")
    with transaction() as session:
        kept = newest_checkpoint(session, job_id)
    assert kept is not None
    assert (Path(kept.url) / "progress.json").is_file()

    stack.wait_until("the device is free", lambda: [gpu.state for gpu in gpus()] == ["free"])
    trainer_pid = gpus()[0].trainer_pid
    assert trainer_pid is not None
    ballast.unlink()
    other = celora.submit(**fields, max_steps=5).id
    in_state(stack, other, "completed", seconds=120)
    assert gpus()[0].trainer_pid == trainer_pid  # the same trainer, its base still in memory
    celora.retry(job_id)
    stack.wait_until(
        "it goes on from its checkpoint",
        lambda: tries(job_id)[-1].start_step == kept.step,
        seconds=60,
    )
    in_state(stack, job_id, "running")
    celora.cancel(job_id)
    in_state(stack, job_id, "cancelled")
    assert worker.process.poll() is None

"""Killed with -9 wherever it happens to be, a job ends with the bits of one that nobody disturbed.

Through the whole worker: the reference and the disturbed job are submitted alike, on a device with
a fixed number of threads; nothing but SIGKILL from outside tells them apart.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import func, select

from models import store
from models.queries import history, jobs
from models.session import transaction
from models.spec import JobSpec
from models.tables import Attempt, Checkpoint, Job, Metric
from tests.scripted_jobs import FAST, in_state, outcomes, start_gpu_worker, tries
from tests.stack import Stack
from tests.trainer_driver import moment_types

pytestmark = [pytest.mark.broker, pytest.mark.torch, pytest.mark.timeout(1200)]

# Rare enough that the trainer reports between two checkpoints, too (four times a second).
CHECKPOINT, LOG = 31, 7
REPEATED = ("train_loss", "grad_norm", "learning_rate", "token_accuracy", "epoch", "eval_loss")
QLORA_8BIT = {
    "method": "qlora",
    "optimizer": "paged_adamw_8bit",
    # bitsandbytes keeps the state of smaller weights in 32 bits: 64 × 64 is its limit.
    "rank": 64,
}


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from gpu_worker.trainer.tiny_base import random_base

    folder = tmp_path_factory.mktemp("resume")
    source = random.Random(11)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    with (folder / "rows.jsonl").open("w") as file:
        for n in range(120):
            answer = " ".join(source.choices(words, k=source.randint(1, 40)))
            file.write(json.dumps({"prompt": f"count {n}", "completion": answer}) + "\n")
    return {
        "base_model": str(random_base(folder / "tiny-llama")),
        "dataset": str(folder / "rows.jsonl"),
        "method": "lora",
        "optimizer": "adamw_torch",
        "rank": 8,
        "dropout": 0.1,
        "learning_rate": 1e-3,
        "max_steps": 160,  # ten epochs
        "max_sequence_length": 64,
        "packing": "off",
        "batch_size": 4,
        "gradient_accumulation": 2,
        "checkpoint_every_steps": CHECKPOINT,
        "log_every_steps": LOG,
        "evaluate": False,
    }


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    stack.environment |= FAST | {"CELORA_MAX_LOSSES": "20"}
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack, 2)
    return stack


def submit(fields: dict[str, Any]) -> str:
    with transaction() as session:
        spec = JobSpec.model_validate(fields)
        return jobs.insert_job(session, spec, tenant="default", user="ada").id


def reached(job_id: str, fence: int) -> int:
    """The last step that the attempt itself has put on record; 0: none yet."""
    with transaction() as session:
        newest = select(func.max(Metric.step)).where(
            Metric.job_id == job_id, Metric.fence == fence, Metric.name == "train_loss"
        )
        return session.scalar(newest) or 0


def kill_at(pool: Stack, job_id: str, step: int) -> None:
    """Kill the trainer after `step`, off the grids of logging and of checkpoints."""

    def there(attempt: Attempt) -> bool:
        now = reached(job_id, attempt.fence)
        return now >= step and now % CHECKPOINT != 0 and now % LOG != 0

    kill(pool, job_id, f"is past step {step}", there)


def kill_in_a_save(pool: Stack, job_id: str) -> None:
    """Kill the trainer while it writes a checkpoint: a part of one is left, and is never used."""

    def partial(attempt: Attempt) -> list[Path]:
        folder = store.work_folder(job_id, attempt.fence) / "checkpoints"
        return list(folder.glob(".step-*.partial"))

    torn: list[Path] = []
    while not torn:
        # A save takes some hundredths of a second. None left: it was just done.
        torn = partial(kill(pool, job_id, "saves", partial, look_seconds=0.001))
    step = int(torn[0].name.removeprefix(".step-").removesuffix(".partial"))
    started = at_work(pool, job_id).start_step
    assert (started or 0) < step


def kill(
    pool: Stack,
    job_id: str,
    what: str,
    when: Callable[[Attempt], object],
    *,
    look_seconds: float = 0.05,
) -> Attempt:
    attempt = at_work(pool, job_id)
    assert attempt.trainer_pid is not None
    deadline = time.monotonic() + 240
    while not when(attempt):
        assert time.monotonic() < deadline, f"{job_id} {what}: not seen\n{pool.logs()}"
        time.sleep(look_seconds)
    os.kill(attempt.trainer_pid, signal.SIGKILL)
    lost = pool.wait_until(
        "it is lost",
        lambda: next((t for t in tries(job_id) if t.id == attempt.id and t.ended_at), None),
        seconds=20,
    )
    assert lost.outcome == "lost"
    assert "signal 9" in (lost.reason or "")
    return attempt


def at_work(pool: Stack, job_id: str) -> Attempt:
    """The job's live attempt, once it has a trainer."""

    def working() -> Attempt | None:
        newest = tries(job_id)[-1:]
        return next((t for t in newest if t.trainer_pid and t.ended_at is None), None)

    return pool.wait_until(f"{job_id} has a trainer", working, seconds=120)


def curve(job_id: str, name: str) -> dict[int, float]:
    with transaction() as session:
        rows = history.metrics_of(session, job_id, [name])
    assert len({row.step for row in rows}) == len(rows)
    return {row.step: row.value for row in rows}


def checkpoints(job_id: str) -> list[Checkpoint]:
    """All that ever were registered, by step."""
    with transaction() as session:
        return list(
            session.scalars(
                select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
            )
        )


def adapter(done: Job) -> bytes:
    assert done.adapter_url is not None
    return (store.local_path(done.adapter_url) / "adapter_model.safetensors").read_bytes()


def same_to_the_bit(pool: Stack, undisturbed: str, disturbed: str) -> None:
    one = in_state(pool, undisturbed, "completed", seconds=120)
    two = in_state(pool, disturbed, "completed", seconds=120)
    assert one.total_steps is not None
    assert outcomes(undisturbed) == ["completed"]
    assert set(outcomes(disturbed)[:-1]) == {"lost"}
    starts = {attempt.start_step for attempt in tries(disturbed)} - {None}
    assert starts <= set(range(CHECKPOINT, one.total_steps, CHECKPOINT))
    assert starts
    assert adapter(one) == adapter(two)
    # No step is missing, none was counted twice, and each has the same loss to the last bit.
    assert list(curve(disturbed, "train_loss")) == list(range(1, one.total_steps + 1))
    for name in REPEATED:
        expected, found = curve(undisturbed, name), curve(disturbed, name)
        assert {step: found.get(step) for step in expected} == expected, name
    assert one.result is not None
    assert two.result is not None
    for name in ("steps", "trained_tokens", "trainable_parameters", "train_loss", "eval_loss"):
        assert two.result[name] == one.result[name], name
    assert two.result["trainable_parameters"] > 0
    assert two.trained_tokens == one.trained_tokens
    tokens = {saved.step: saved.trained_tokens for saved in checkpoints(undisturbed)}
    assert len(tokens) == (one.total_steps - 1) // CHECKPOINT
    for saved in checkpoints(disturbed):  # a step that was saved by two attempts twice
        assert saved.trained_tokens == tokens[saved.step]


def states_are_8bit(job_id: str) -> None:
    """The checkpoint that stands holds them as they were used; the adapter is bfloat16."""
    folder = store.local_path(checkpoints(job_id)[-1].url)
    assert moment_types(folder) == {torch.uint8}
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_killed_twice_it_ends_with_the_same_bits(pool: Stack, fields: dict[str, Any]) -> None:
    undisturbed, disturbed = submit(fields), submit(fields)
    kill_at(pool, disturbed, CHECKPOINT + random.Random(20).randint(1, CHECKPOINT - 5))
    kill_in_a_save(pool, disturbed)
    same_to_the_bit(pool, undisturbed, disturbed)


@pytest.mark.slow  # half a minute; test_trainer_resume has the trainer alone
def test_an_8bit_optimizer_on_a_quantised_base_goes_on_with_the_same_bits(
    pool: Stack, fields: dict[str, Any]
) -> None:
    shorter = fields | QLORA_8BIT | {"max_steps": 80}
    undisturbed, disturbed = submit(shorter), submit(shorter)
    kill_at(pool, disturbed, CHECKPOINT + random.Random(21).randint(1, CHECKPOINT - 5))
    same_to_the_bit(pool, undisturbed, disturbed)
    for job_id in (undisturbed, disturbed):
        states_are_8bit(job_id)


VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"packing": "on", "max_sequence_length": 128},
    "one row at a time": {"batch_size": 1, "gradient_accumulation": 8, "dropout": 0.3},
    "held-out losses": {"eval_every_steps": 4, "validation_fraction": 0.2, "schedule": "linear"},
    "8-bit": {"optimizer": "adamw_bnb_8bit", "rank": 64},
    "recomputed": {"gradient_checkpointing": "on", "target_modules": "auto", "use_rslora": True},
    "quantised, packed": QLORA_8BIT
    | {"packing": "on", "max_sequence_length": 128, "eval_every_steps": 9, "warmup_steps": 10}
    | {"validation_fraction": 0.2, "gradient_checkpointing": "on", "batch_size": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_again_and_again_every_kind_of_job_ends_with_the_same_bits(
    pool: Stack, fields: dict[str, Any], variant: str
) -> None:
    varied = fields | {"max_steps": 240} | VARIANTS[variant]
    undisturbed, disturbed = submit(varied), submit(varied)
    source = random.Random(variant)
    for step in sorted(source.sample(range(1, 160), 4)):
        kill_at(pool, disturbed, step)
    kill_in_a_save(pool, disturbed)
    same_to_the_bit(pool, undisturbed, disturbed)
    if varied["rank"] == 64:
        assert moment_types(store.local_path(checkpoints(disturbed)[-1].url)) == {torch.uint8}
    if "eval_every_steps" in varied:
        every = varied["eval_every_steps"]
        assert list(curve(disturbed, "eval_loss")) == list(range(every, 241, every))

"""The real trainer under the real worker: killed, paused and resumed, cancelled, stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.queries import history, jobs, products
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
from tests.scripted_jobs import (
    FAST,
    at_step,
    gpu_worker,
    in_state,
    is_gone,
    job,
    outcomes,
    start_gpu_worker,
    trainer_of,
    tries,
)
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.torch]

STEPS = 400  # so many that a stop is heeded long before the last, however quick the machine


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from gpu_worker.trainer.tiny_base import random_base

    folder = tmp_path_factory.mktemp("real")
    base = random_base(folder / "tiny-llama")
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(200))
    data = folder / "rows.jsonl"
    data.write_text("\n".join(lines))
    return {
        "base_model": str(base),
        "dataset": str(data),
        "max_steps": STEPS,
        "max_sequence_length": 64,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "checkpoint_every_steps": 20,
        "eval_generate_rows": 0,
    }


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    # A stop is heeded between two steps, but a first step on a busy machine takes its time.
    stack.environment |= FAST | {
        "CELORA_CANCEL_GRACE_SECONDS": "10",
        "CELORA_STOP_GRACE_SECONDS": "30",
    }
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack, 1)
    return stack


def submit(fields: dict[str, Any]) -> str:
    with transaction() as session:
        spec = JobSpec.model_validate(fields)
        return jobs.insert_job(session, spec, tenant="default", user="ada").id


def begin(pool: Stack, job_id: str) -> None:
    """Wait for the first step: the trainer's imports may take a while."""
    pool.wait_until("it trains", lambda: job(job_id).step >= 1, seconds=120)


def test_killed_then_paused_it_goes_on_from_its_checkpoints(
    pool: Stack, fields: dict[str, Any]
) -> None:
    job_id = submit(fields)
    begin(pool, job_id)
    trainer = trainer_of(at_step(pool, job_id, 25))
    trainer.kill()
    pool.wait_until("it is lost", lambda: outcomes(job_id)[0] == "lost", seconds=10)
    reached = job(job_id).step
    pool.wait_until("it goes on", lambda: job(job_id).step > reached, seconds=120)
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.PAUSE)
    in_state(pool, job_id, "paused", seconds=40)
    with transaction() as session:
        saved = products.newest_checkpoint(session, job_id)
        jobs.resume_job(session, job_id)
    done = in_state(pool, job_id, "completed", seconds=120)
    assert outcomes(job_id) == ["lost", "paused", "completed"]
    assert saved is not None
    starts = [attempt.start_step for attempt in tries(job_id)]
    assert starts[0] is None
    assert (starts[1] or 0) >= 20
    assert starts[2] == saved.step == tries(job_id)[1].end_step
    with transaction() as session:
        points = history.metrics_of(session, job_id, ["train_loss"])
    assert [point.step for point in points if point.stage == "train"] == list(range(1, STEPS + 1))
    assert done.adapter_url is not None
    assert (Path(done.adapter_url) / "adapter_model.safetensors").exists()
    assert done.result is not None
    assert done.result["evaluation"]["tuned"]["loss"] > 0


def test_it_is_cancelled_and_drained(pool: Stack, fields: dict[str, Any]) -> None:
    endless = fields | {"max_steps": 100_000, "checkpoint_every_steps": 100_000}
    cancelled = submit(endless)
    begin(pool, cancelled)
    with transaction() as session:
        jobs.request_stop(session, cancelled, StopReason.CANCEL)
    in_state(pool, cancelled, "cancelled", seconds=15)

    drained = submit(endless)
    begin(pool, drained)
    attempt = tries(drained)[-1]
    assert attempt.trainer_warm  # the cancel had not cost the process
    trainer = trainer_of(attempt)
    assert pool.stop(gpu_worker(pool), seconds=60) == 0
    assert is_gone(trainer)
    assert outcomes(drained) == ["drained"]
    with transaction() as session:
        saved = products.newest_checkpoint(session, drained)
    assert saved is not None
    assert saved.step == tries(drained)[-1].end_step

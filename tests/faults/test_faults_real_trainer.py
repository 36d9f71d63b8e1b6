"""One case of each kind of fault with the real trainer: killed, suspended, stopped, NaN, memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.queries import history, jobs, products
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    FAST,
    at_step,
    family,
    gpu_worker,
    in_state,
    is_gone,
    job,
    outcomes,
    start_gpu_worker,
    steps_once,
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


@pytest.mark.slow
@pytest.mark.fault(5)
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


@pytest.mark.slow
@pytest.mark.fault(26)
def test_a_loss_that_is_not_finite_fails_the_job_or_ends_it_at_its_last_good_checkpoint(
    pool: Stack, fields: dict[str, Any], tmp_path: Path, observe: Observe
) -> None:
    """The base holds an infinity that one row of the data meets."""
    poisoned = fields | {
        "base_model": str(poisoned_base(Path(fields["base_model"]), tmp_path / "base")),
        "dataset": str(poisoned_rows(tmp_path / "rows.jsonl")),
        "checkpoint_every_steps": 1,
        "max_steps": 40,
        "evaluate": False,
        "validation_fraction": 0,
    }
    fails = submit(poisoned)
    failed = in_state(pool, fails, "failed", seconds=120)
    assert failed.error is not None
    assert failed.error["code"] == "non_finite_loss"
    assert failed.error["where"] == f"step {failed.step + 1}"
    assert failed.step > 0
    observe("error", f"{failed.error['message']}, {failed.error['where']}")
    ends = submit(poisoned | {"on_non_finite": "stop_at_checkpoint"})
    done = in_state(pool, ends, "completed", seconds=120)
    assert done.result is not None
    assert done.result["ended_at_checkpoint"] == done.result["steps"] == failed.step
    observe("ended at the checkpoint of step", done.result["steps"])


@pytest.mark.slow
@pytest.mark.fault(27)
def test_a_step_that_finds_no_memory_is_tried_again_with_half_the_rows(
    pool: Stack, fields: dict[str, Any], tmp_path: Path, observe: Observe
) -> None:
    """The address space of the warm trainer is limited; the retry has a fresh one."""
    small = submit(fields | {"max_steps": 1, "evaluate": False})
    in_state(pool, small, "completed", seconds=120)
    pid = tries(small)[-1].trainer_pid
    assert pid is not None
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    room = pages * os.sysconf("SC_PAGE_SIZE") + 200 * 2**20
    resource.prlimit(pid, resource.RLIMIT_AS, (room, hard))
    lines = (json.dumps({"prompt": f"{n}", "completion": "number " * 800}) for n in range(80))
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join(lines))
    big = fields | {"dataset": str(data), "max_sequence_length": 800, "packing": "off"}
    job_id = submit(
        big | {"batch_size": 64, "gradient_accumulation": 1, "max_steps": 1, "evaluate": False}
    )
    in_state(pool, job_id, "completed", seconds=240)
    assert outcomes(job_id) == ["retried", "completed"]
    assert is_gone_pid(pid)
    assert job(job_id).overrides == {"batch_size": 32, "gradient_accumulation": 2}
    with transaction() as session:
        told = [e.message for e in history.events_of(session, job_id) if e.kind == "out_of_memory"]
    assert len(told) == 1
    observe("told", told[0])


@pytest.mark.slow
@pytest.mark.fault(7)
def test_suspended_past_its_lease_it_writes_nothing_more_and_ends(
    pool: Stack, fields: dict[str, Any], observe: Observe
) -> None:
    job_id = submit(fields | {"max_steps": 600})
    begin(pool, job_id)
    trainer = trainer_of(at_step(pool, job_id, 25))
    stopped = [trainer, *family(trainer)]
    for process in stopped:
        process.suspend()
    pool.wait_until("the lease ran out", lambda: outcomes(job_id) == ["lost"], seconds=20)
    for process in reversed(stopped):
        process.resume()
    began = time.monotonic()
    pool.wait_until("the old trainer is dead", lambda: is_gone(trainer), seconds=5)
    observe("seconds until the old trainer was dead", time.monotonic() - began)
    in_state(pool, job_id, "completed", seconds=240)
    steps_once(job_id, 600)


@pytest.mark.slow
@pytest.mark.fault(6)
def test_a_killed_worker_takes_the_real_trainer_along(
    pool: Stack, fields: dict[str, Any], observe: Observe
) -> None:
    job_id = submit(fields | {"max_steps": 600})
    begin(pool, job_id)
    trainer = trainer_of(at_step(pool, job_id, 25))
    _, main = family(trainer)
    main.kill()
    began = time.monotonic()
    pool.wait_until("the trainer is dead", lambda: is_gone(trainer), seconds=5)
    observe("seconds until the trainer was dead", time.monotonic() - began)
    in_state(pool, job_id, "completed", seconds=240)
    assert outcomes(job_id) == ["lost", "completed"]
    steps_once(job_id, 600)


@pytest.mark.slow
@pytest.mark.fault(14, 16)
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


def is_gone_pid(pid: int) -> bool:
    return not psutil.pid_exists(pid) or is_gone(psutil.Process(pid))


def poisoned_rows(path: Path) -> Path:
    lines = [json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(40)]
    lines[30] = json.dumps({"prompt": "say ~", "completion": "~"})
    path.write_text("\n".join(lines))
    return path


def poisoned_base(base: Path, folder: Path) -> Path:
    """The same model, but for an infinity where the token ~ is embedded."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(base, folder)
    tokens = AutoTokenizer.from_pretrained(folder)("~", add_special_tokens=False)["input_ids"]
    weights = load_file(folder / "model.safetensors")
    # The head is tied to the embedding: as it is, every token would meet the infinity there.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][tokens[-1]] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

"""A worker, its pool child and its trainer die, are told to leave, or are started twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from models import store
from models.queries import products
from models.session import transaction
from tests import records
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    at_step,
    family,
    gpu_of,
    gpu_worker,
    gpus,
    in_state,
    is_gone,
    job,
    outcomes,
    pool_child,
    start_gpu_worker,
    steps_once,
    submit,
    tickets,
    trainer_of,
    tries,
    words,
    worker_main,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker

DEAD_WITHIN = 5.0  # seconds from a worker's death to its trainer's


@pytest.mark.fault(4)
def test_a_pool_child_killed_between_receipt_and_claim_gets_the_same_fence_again(
    pool: Stack, observe: Observe
) -> None:
    children = {gpu.worker: pool_child(worker_main(pool, gpu)) for gpu in gpus()}
    for child in children.values():
        child.suspend()
    job_id = submit("steps=5&step_seconds=0")
    pool.wait_until("its ticket is out", lambda: any(t.sent_at for t in tickets(job_id)))
    with records.locked("SELECT FROM jobs WHERE id = :job_id FOR UPDATE", job_id=job_id):
        for child in children.values():
            child.resume()
        records.until_blocked()  # it has the ticket and asks for its row
        placed = tries(job_id)[0]
        killed = children[gpu_of(placed).worker]
        killed.kill()
        killed_at = time.monotonic()
        pool.wait_until("the child is dead", lambda: is_gone(killed), seconds=5)
    assert placed.claimed_at is None
    in_state(pool, job_id, "completed")
    observe("seconds from the kill to the job's end", time.monotonic() - killed_at)
    (only,) = tries(job_id)
    assert (only.fence, only.outcome) == (placed.fence, "completed")
    observe("fences used on a GPU", 1)


@pytest.mark.fault(5)
def test_a_killed_trainer_is_lost_and_the_job_resumes(pool: Stack, observe: Observe) -> None:
    job_id = submit("steps=120&step_seconds=0.02&checkpoint_every=10")
    trainer = trainer_of(at_step(pool, job_id, 25))
    trainer.kill()
    done = in_state(pool, job_id, "completed")
    assert is_gone(trainer)
    first, second = tries(job_id)
    assert (first.outcome, second.outcome) == ("lost", "completed")
    assert "signal 9" in str(first.reason)
    assert (second.start_step or 0) >= 20
    assert done.trained_tokens == 120 * 100
    steps_once(job_id, 120)
    observe("resumed from step", second.start_step)


@pytest.mark.fault(5)
def test_losses_without_a_checkpoint_fail_the_job_at_the_third(
    pool: Stack, observe: Observe
) -> None:
    job_id = submit("steps=50&exit_at=5&step_seconds=0&checkpoint_every=1000")
    failed = in_state(pool, job_id, "failed", seconds=60)
    assert outcomes(job_id) == ["lost"] * 3
    assert all("signal 9" in str(attempt.reason) for attempt in tries(job_id))
    assert failed.error is not None
    assert failed.error["code"] == "worker_lost"
    assert failed.error["remedy"]
    observe("attempts", 3)


@pytest.mark.fault(20)
def test_a_torn_checkpoint_is_ignored_and_the_one_before_it_used(
    pool: Stack, observe: Observe
) -> None:
    """Killed in the middle of writing that of step 20, in the first attempt on a GPU."""
    job_id = submit("steps=60&step_seconds=0&checkpoint_every=10&save_exit_at=20&fault_fences=2")
    in_state(pool, job_id, "completed")
    first, second = tries(job_id)
    assert (first.outcome, second.outcome) == ("lost", "completed")
    folders = store.work_folder(job_id, first.fence) / "checkpoints"
    assert (folders / "step-20.tmp").is_dir()  # so it was torn
    assert not (folders / "step-20").exists()
    assert second.start_step == 10
    steps_once(job_id, 60)
    observe("resumed from step", second.start_step)


@pytest.mark.fault(6)
def test_a_killed_worker_takes_its_trainer_along_and_the_job_is_placed_again(
    pool: Stack, observe: Observe
) -> None:
    job_id = submit("steps=200&step_seconds=0.02&checkpoint_every=10&children=1")
    trainer = trainer_of(at_step(pool, job_id, 15))
    forked = trainer.children()
    child, main = family(trainer)
    main.kill()
    killed_at = time.monotonic()
    pool.wait_until(
        "the trainer is dead", lambda: is_gone(trainer) and is_gone(child), seconds=DEAD_WITHIN
    )
    observe("seconds until the trainer was dead", time.monotonic() - killed_at)
    in_state(pool, job_id, "completed", seconds=60)
    observe("seconds from the kill to the job's end", time.monotonic() - killed_at)
    assert outcomes(job_id) == ["lost", "completed"]
    assert (tries(job_id)[1].start_step or 0) >= 10
    steps_once(job_id, 200)
    # The new worker found the data loader that its predecessor's trainer had left behind.
    pool.wait_until("what it forked is dead", lambda: all(map(is_gone, forked)), seconds=5)
    both_free(pool)


@pytest.mark.fault(6)
def test_a_killed_pool_child_is_replaced_and_the_job_runs_again(
    pool: Stack, observe: Observe
) -> None:
    job_id = submit("steps=200&step_seconds=0.02&checkpoint_every=10")
    trainer = trainer_of(at_step(pool, job_id, 15))
    child, main = family(trainer)
    child.kill()
    killed_at = time.monotonic()
    pool.wait_until("the trainer is dead", lambda: is_gone(trainer), seconds=DEAD_WITHIN)
    observe("seconds until the trainer was dead", time.monotonic() - killed_at)
    in_state(pool, job_id, "completed", seconds=60)
    assert main.is_running()
    assert outcomes(job_id) == ["lost", "completed"]
    steps_once(job_id, 200)


@pytest.mark.fault(17)
def test_a_worker_told_to_leave_and_killed_at_once_loses_only_the_attempt(
    pool: Stack, observe: Observe
) -> None:
    job_id = submit("steps=200&step_seconds=0.02&checkpoint_every=10")
    trainer = trainer_of(at_step(pool, job_id, 15))
    child, main = family(trainer)
    main.send_signal(signal.SIGTERM)
    main.kill()
    killed_at = time.monotonic()
    pool.wait_until(
        "the trainer is dead", lambda: is_gone(trainer) and is_gone(child), seconds=DEAD_WITHIN
    )
    assert is_gone(main)
    observe("seconds until the trainer was dead", time.monotonic() - killed_at)
    in_state(pool, job_id, "completed", seconds=60)
    first, *between, last = outcomes(job_id)
    assert (first in {"lost", "drained"}, between, last) == (True, [], "completed")
    observe("how the attempt ended", first)
    steps_once(job_id, 200)
    both_free(pool)


@pytest.mark.fault(18)
def test_a_second_worker_of_a_device_is_refused(pool: Stack, observe: Observe) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "celora", "gpu-worker", "--devices", "cpu:2"],
        env=os.environ | pool.environment,
        cwd=pool.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = second.stdout + second.stderr
    assert second.returncode == 5, said
    assert "is served already by gpu0@" in said
    assert "Traceback" not in said
    assert words() == ["free", "free"]
    observe("said", next(line for line in said.splitlines() if "served already" in line))


# The last: these end the worker.


@pytest.mark.fault(16)
def test_sigterm_drains_with_a_checkpoint_and_the_job_goes_on_elsewhere(
    pool: Stack, observe: Observe
) -> None:
    job_id = submit("steps=400&step_seconds=0.02&checkpoint_every=1000")
    trainer = trainer_of(at_step(pool, job_id, 10))
    began = time.monotonic()
    assert pool.stop(gpu_worker(pool)) == 0
    stopped = time.monotonic() - began
    assert stopped < 8
    observe("seconds until the worker had left", stopped)
    assert is_gone(trainer)
    assert outcomes(job_id) == ["drained"]
    waiting = job(job_id)
    assert (waiting.state, waiting.losses) == ("queued", 0)
    assert words() == ["stale", "stale"]
    with transaction() as session:
        saved = products.newest_checkpoint(session, job_id)
    assert saved is not None
    start_gpu_worker(pool)
    in_state(pool, job_id, "completed")
    assert [one.start_step for one in tries(job_id)] == [None, saved.step]
    observe("saved and resumed at step", saved.step)


@pytest.mark.fault(16)
def test_a_killed_launcher_lets_its_workers_drain(pool: Stack) -> None:
    job_id = submit("steps=400&step_seconds=0.02&checkpoint_every=1000")
    trainer = trainer_of(at_step(pool, job_id, 10))
    pool.kill(gpu_worker(pool))
    pool.wait_until("the trainer is gone", lambda: is_gone(trainer), seconds=15)
    pool.wait_until("it is drained", lambda: outcomes(job_id) == ["drained"], seconds=15)
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is not None


def both_free(stack: Stack) -> None:
    stack.wait_until("both slots are free", lambda: words() == ["free", "free"], seconds=30)

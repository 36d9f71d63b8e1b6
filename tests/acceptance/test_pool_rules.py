"""One CPU slot and real processes: urgent jobs, stops, cordons, jobs after jobs, limits."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from models.queries import gpus as gpu_queries
from models.queries import history, jobs, products, tenants
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
from models.tables import Attempt
from tests.scripted_jobs import (
    FAST,
    at_step,
    in_state,
    job,
    outcomes,
    start_gpu_worker,
    submit,
    tries,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker

LONG = "steps=400&step_seconds=0.02&checkpoint_every=100000"


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack, slots=1)
    return stack


def test_an_urgent_job_takes_the_gpu_and_the_victim_goes_on_from_its_checkpoint(
    pool: Stack,
) -> None:
    victim = submit(LONG, preemptible=True)
    at_step(pool, victim, 20)
    began = time.monotonic()
    urgent = submit("steps=5&step_seconds=0", urgent=True)
    in_state(pool, urgent, "completed", seconds=20)
    assert time.monotonic() - began < 10
    done = in_state(pool, victim, "completed", seconds=40)
    first, second = tries(victim)
    assert (first.outcome, first.preempted_for) == ("preempted", urgent)
    assert second.start_step == first.end_step
    assert (first.end_step or 0) >= 20
    assert done.losses == 0
    assert done.trained_tokens == 400 * 100
    with transaction() as session:
        steps = [point.step for point in history.metrics_of(session, victim, ["train_loss"])]
        assert "preempts" in {event.kind for event in history.events_of(session, urgent)}
    assert steps == list(range(1, 401))


@pytest.mark.parametrize("reason", [StopReason.PAUSE, StopReason.DRAIN])
def test_a_stop_is_acknowledged_within_5_seconds(pool: Stack, reason: StopReason) -> None:
    job_id = submit("steps=100000&step_seconds=0.02&checkpoint_every=100000")
    attempt = at_step(pool, job_id, 5)
    began = time.monotonic()
    for _ in range(2):  # the second changes nothing
        with transaction() as session:
            jobs.request_stop(session, job_id, reason)
    pool.wait_until("it has stopped", lambda: ended(job_id, attempt), seconds=5)
    assert time.monotonic() - began < 5
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is not None
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    in_state(pool, job_id, "cancelled", seconds=15)


def ended(job_id: str, attempt: Attempt) -> bool:
    return any(one.id == attempt.id and one.ended_at is not None for one in tries(job_id))


def test_a_cordoned_gpu_finishes_its_job_and_takes_no_other(pool: Stack) -> None:
    first = submit("steps=60&step_seconds=0.02")
    at_step(pool, first, 2)
    (gpu,) = host_gpus(pool)
    with transaction() as session:
        gpu_queries.set_cordon(session, gpu.host, gpu.index, on=True)
    second = submit("steps=2&step_seconds=0")
    in_state(pool, first, "completed")
    pool.wait_until("it waits", lambda: job(second).state == "queued")
    pool.wait_until("it is empty", lambda: host_gpus(pool)[0].state == "cordoned")
    assert tries(second) == []
    with transaction() as session:
        gpu_queries.set_cordon(session, gpu.host, gpu.index, on=False)
    in_state(pool, second, "completed")


def host_gpus(pool: Stack) -> list[gpu_queries.GpuView]:
    with transaction() as session:
        found = gpu_queries.list_gpus(session)
    return [gpu for gpu in found if gpu.host == pool.environment["CELORA_HOST"]]


def test_a_chain_of_jobs_runs_one_after_the_other(pool: Stack) -> None:
    first = submit("steps=60&step_seconds=0.01")
    second = submit("steps=3", after=first, priority=50)
    third = submit("steps=3", after=second, priority=90)
    for one in (first, second, third):
        in_state(pool, one, "completed")
    times = [(tries(one)[0].claimed_at, tries(one)[0].ended_at) for one in (first, second, third)]
    for (_, before), (after, _) in pairwise(times):
        assert before is not None
        assert after is not None
        assert before <= after


def test_a_limit_holds_a_job_back_until_it_is_raised(pool: Stack) -> None:
    with transaction() as session:
        tenants.change_tenant(session, "default", {"max_running_jobs": 0})
    job_id = submit("steps=2&step_seconds=0")
    pool.wait_until("it is prepared", lambda: job(job_id).state == "queued")
    witness = submit_as("other", "steps=2&step_seconds=0")
    in_state(pool, witness, "completed")  # placed after it, on the GPU that it could have had
    assert outcomes(job_id) == []
    with transaction() as session:
        tenants.change_tenant(session, "default", {"max_running_jobs": None})
    in_state(pool, job_id, "completed")


def submit_as(tenant: str, script: str) -> str:
    spec = JobSpec(base_model=f"scripted:?{script}", dataset="none")
    with transaction() as session:
        return jobs.insert_job(session, spec, tenant=tenant, user="eve").id

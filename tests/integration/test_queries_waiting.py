"""Why a job waits, and that its position is the dispatcher's."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import text, update

from models.queries import attempts, gpus, jobs, waiting
from models.queries.waiting import Why
from models.session import transaction
from models.states import JobState, Outcome, Stage, StopReason
from models.tables import Tenant
from tests import records
from tests.records import add_gpu, claimed, end, place, queued, running, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def why(job_id: str) -> Why:
    with transaction() as session:
        return waiting.why_waiting(session, job_id)


def reason(job_id: str) -> str:
    return why(job_id).reason


def stop(job_id: str, because: StopReason) -> None:
    with transaction() as session:
        jobs.request_stop(session, job_id, because)


def test_preparation() -> None:
    job_id = submit()
    assert reason(job_id) == "to_prepare"
    records.place_preparation()
    assert "CPU worker" in why(job_id).sentence
    claimed(job_id, Stage.PREPROCESS)
    assert reason(job_id) == "preparing"


def test_no_worker_at_all_and_one_that_is_stale() -> None:
    job_id = queued()
    assert why(job_id) == Why(
        JobState.QUEUED,
        "no_worker",
        "No GPU worker is running; `celora gpu-worker` starts one.",
        1,
    )
    add_gpu()
    with transaction() as session:
        session.execute(text("UPDATE gpus SET heartbeat_at = heartbeat_at - interval '1 hour'"))
    assert reason(job_id) == "no_worker"


def test_gpus_that_take_no_job() -> None:
    job_id = queued()
    gpu_id = add_gpu(reported="held")
    assert reason(job_id) == "gpus_held"
    with transaction() as session:
        gpus.heartbeat(session, gpu_id, "session-1", reported="idle")
        gpus.set_cordon(session, "host", 0, on=True)
    assert reason(job_id) == "gpus_cordoned"


def test_a_free_gpu_a_busy_one_and_a_placement() -> None:
    first, second = queued(), queued()
    add_gpu()
    assert reason(first) == "next"
    assert reason(second) == "gpus_busy"  # the free one goes to the first
    place()
    assert reason(first) == "placed"
    claimed(first, Stage.TRAIN)
    assert reason(first) == "running"
    assert (why(second).reason, why(second).position) == ("gpus_busy", 1)
    third = queued()
    assert "1 job goes before it" in why(third).sentence


def test_running_stopping_paused_and_finished() -> None:
    taken = running()
    stop(taken.job_id, StopReason.PAUSE)
    assert reason(taken.job_id) == "stopping"
    end(taken.job_id, taken.fence, Outcome.PAUSED)
    assert reason(taken.job_id) == "paused"
    stop(taken.job_id, StopReason.CANCEL)
    assert reason(taken.job_id) == "finished"
    assert why(taken.job_id).position is None


@pytest.mark.parametrize("seed", range(4))
def test_the_position_is_the_order_in_which_jobs_are_placed(seed: int) -> None:
    """Tenants, weights, use and priorities at random; each job is asked before any is placed."""
    chance = random.Random(seed)
    made = [
        queued(f"tenant-{chance.randrange(4)}", priority=chance.randrange(3)) for _ in range(12)
    ]
    with transaction() as session:
        for number in range(4):
            session.execute(
                update(Tenant)
                .where(Tenant.name == f"tenant-{number}")
                .values(
                    weight=chance.choice([0.5, 1, 2, 3]),
                    # Far enough apart that the seconds which pass between the two do not matter.
                    usage_gpu_seconds=37 * chance.randrange(20),
                    usage_at=text("now()"),
                )
            )
    said = {job_id: why(job_id).position for job_id in made}
    for index in range(12):
        add_gpu(index)
    placed = {one.job_id: place for place, one in enumerate(place(), start=1)}
    assert said == placed


def test_a_job_between_its_stages_is_running() -> None:
    taken = running()
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    assert "stage evaluate" in why(taken.job_id).sentence

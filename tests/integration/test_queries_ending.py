"""The ends of an attempt: what each outcome makes of the job, and what it is charged."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, text

from models.errors import StaleFenceError, StateError
from models.queries import attempts, jobs
from models.session import transaction
from models.settings import settings
from models.states import JobState, Outcome, Stage, StopReason
from models.tables import Event, Tenant
from tests import records
from tests.records import add_gpu, claim, claimed, end, job, place, queued, running, state

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def test_training_and_evaluation_are_one_attempt() -> None:
    taken = running()
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    assert (state(taken.job_id), job(taken.job_id).stage) == (JobState.RUNNING, Stage.EVALUATE)
    claimed(taken.job_id, Stage.EVALUATE)
    done = end(taken.job_id, taken.fence, Outcome.COMPLETED, result={"loss": 1.5})
    assert (done.state, done.result) == (JobState.COMPLETED, {"loss": 1.5})
    assert done.finished_at is not None


def test_a_lost_evaluation_is_placed_again_without_training() -> None:
    taken = running()
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    end(taken.job_id, taken.fence, Outcome.LOST)
    (placed,) = place()
    assert placed.stage is Stage.EVALUATE
    assert claim(taken.job_id, Stage.TRAIN) is None
    assert claim(taken.job_id, Stage.EVALUATE) is not None


def test_a_stage_is_finished_once_and_in_order() -> None:
    taken = running()
    with pytest.raises(StateError), transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.EVALUATE, Stage.TRAIN)
    assert job(taken.job_id).stage == Stage.TRAIN


def test_an_attempt_ends_once() -> None:
    taken = running(evaluate=False)
    end(taken.job_id, taken.fence, Outcome.COMPLETED, result={"loss": 1.0})
    with pytest.raises(StaleFenceError):
        end(taken.job_id, taken.fence, Outcome.FAILED, result={"loss": 9.0})
    done = job(taken.job_id)
    assert (done.state, done.result, done.error) == (JobState.COMPLETED, {"loss": 1.0}, None)
    with pytest.raises(StaleFenceError):
        end("ftjob-nothing", 1, Outcome.FAILED)


def test_results_of_both_stages_are_kept_together() -> None:
    taken = running()
    end(taken.job_id, taken.fence, Outcome.DRAINED, result={"steps": 3, "bad": float("nan")})
    place()
    again = claimed(taken.job_id, Stage.TRAIN)
    ended = end(again.job_id, again.fence, Outcome.LOST, result={"loss": 1.0})
    assert job(ended.id).result == {"steps": 3, "bad": None, "loss": 1.0}


def test_a_retry_with_a_smaller_micro_batch_is_no_loss() -> None:
    taken = running()
    smaller = {"batch_size": 2, "gradient_accumulation": 8}
    ended = end(taken.job_id, taken.fence, Outcome.RETRIED, overrides=smaller)
    assert (ended.state, ended.losses) == (JobState.QUEUED, 0)
    place()
    assert claimed(taken.job_id, Stage.TRAIN).overrides == smaller


def test_gpu_time_is_charged_to_the_job_and_its_tenant() -> None:
    taken = running()
    with transaction() as session:
        session.execute(
            text("UPDATE attempts SET claimed_at = claimed_at - interval '100 seconds'")
        )
        session.execute(
            text("UPDATE tenants SET usage_gpu_seconds = 80, usage_at = usage_at - :one_half_life"),
            {"one_half_life": timedelta(seconds=settings().usage_half_life_seconds)},
        )
    ended = end(taken.job_id, taken.fence, Outcome.DRAINED)
    assert ended.gpu_seconds == pytest.approx(100, abs=5)
    with transaction() as session:
        used = session.scalars(select(Tenant.usage_gpu_seconds)).one()
    assert used == pytest.approx(100 + 80 / 2, abs=5)


def test_preparation_and_what_nobody_claimed_cost_no_gpu_time() -> None:
    job_id = queued()
    add_gpu()
    place()
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    assert job(job_id).gpu_seconds == 0


def test_use_of_long_ago_decays_without_an_underflow() -> None:
    taken = running()
    with transaction() as session:
        session.execute(
            text("UPDATE tenants SET usage_gpu_seconds = 1, usage_at = '1970-01-01 00:00:00+00'")
        )
    end(taken.job_id, taken.fence, Outcome.DRAINED)
    assert len(place()) == 1


def test_every_end_is_told_in_the_jobs_story() -> None:
    for outcome, kind, level in [
        (Outcome.FAILED, "failed", "error"),
        (Outcome.LOST, "lost", "warn"),
        (Outcome.PREEMPTED, "preempted", "info"),
        (Outcome.RETRIED, "retried", "warn"),
    ]:
        records.clear()
        taken = running()
        end(taken.job_id, taken.fence, outcome, reason="because")
        with transaction() as session:
            last = session.scalars(select(Event).order_by(Event.id.desc()).limit(1)).one()
        assert (last.kind, last.level) == (kind, level)
        assert "because" in last.message

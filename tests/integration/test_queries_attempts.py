"""Claim and lease of an attempt."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from models.errors import WorkerLostError
from models.queries import attempts, gpus, products, reconcile
from models.queries.attempts import Claim
from models.session import transaction
from models.settings import settings
from models.states import JobState, Outcome, Stage
from models.tables import Attempt
from tests import records
from tests.records import add_gpu, claim, claimed, end, job, place, queued, running, state, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def expire() -> list[str]:
    with transaction() as session:
        return reconcile.expire_leases(session)


def checkpoint(taken: Claim, step: int) -> list[int]:
    """Register one; the steps of those it drops."""
    with transaction() as session:
        dropped = products.register_checkpoint(
            session,
            taken.job_id,
            taken.fence,
            step=step,
            url=f"/checkpoints/{step}",
            size_bytes=10,
            trained_tokens=100 * step,
            metrics={"train_loss": 1.0},
        )
        return [one.step for one in dropped]


# Claiming


def test_a_claim_carries_what_the_worker_needs() -> None:
    job_id = queued(tenant="physics", rank=8)
    add_gpu()
    (placed,) = place()
    taken = claimed(job_id, Stage.TRAIN)
    assert (taken.job_id, taken.fence, taken.stage) == (job_id, placed.fence, Stage.TRAIN)
    assert taken.spec.rank == 8
    assert taken.tenant == "physics"
    assert (taken.prepared_url, taken.data_digest) == ("/prepared/1", "1")
    assert taken.base_revision == "r1"
    assert (taken.start_checkpoint, taken.gpu_seconds_so_far, taken.overrides) == (None, 0, {})
    now_running = job(job_id)
    assert now_running.state == JobState.RUNNING
    assert now_running.started_at is not None
    with transaction() as session:
        lease, now = session.execute(
            select(Attempt.lease_until, func.clock_timestamp()).where(
                Attempt.id == taken.attempt_id
            )
        ).one()
    assert timedelta(seconds=55) < lease - now <= timedelta(seconds=60)


def test_a_claim_of_preparation_leaves_the_job_pending() -> None:
    job_id = submit()
    records.place_preparation()
    claimed(job_id, Stage.PREPROCESS)
    found = job(job_id)
    assert (found.state, found.started_at) == (JobState.PENDING, None)


def test_each_stage_is_claimed_once() -> None:
    taken = running()
    assert claim(taken.job_id, Stage.TRAIN) is None
    assert claim(taken.job_id, Stage.EVALUATE) is None  # not its turn yet
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    assert claim(taken.job_id, Stage.TRAIN) is None  # done: never again
    assert claim(taken.job_id, Stage.EVALUATE) is not None
    assert claim(taken.job_id, Stage.EVALUATE) is None


def test_late_strange_and_foreign_tickets_claim_nothing() -> None:
    add_gpu()
    job_id = queued()
    (placed,) = place()
    assert claim(job_id, Stage.TRAIN, fence=placed.fence - 1) is None
    assert claim(job_id, Stage.TRAIN, fence=placed.fence + 1) is None
    assert claim(job_id, Stage.PREPROCESS) is None
    with transaction() as session:
        unknown = attempts.claim(
            session, "ftjob-no", 1, Stage.TRAIN, worker="w", worker_session="s", lease_seconds=1
        )
    assert unknown is None
    assert state(job_id) == JobState.QUEUED


def test_only_the_present_session_of_the_gpus_worker_claims() -> None:
    add_gpu(worker_session="old")
    job_id = queued()
    place()
    add_gpu(worker_session="new")  # its child was replaced while the ticket was on the way
    assert claim(job_id, Stage.TRAIN, worker_session="old") is None
    assert claim(job_id, Stage.TRAIN, worker_session="new") is not None


def test_the_tail_belongs_to_the_session_that_trained() -> None:
    taken = running()
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    add_gpu(worker_session="session-2")
    assert claim(taken.job_id, Stage.EVALUATE, worker_session="session-2") is None


def test_of_many_claimers_one_gets_the_stage() -> None:
    add_gpu()
    job_id = queued()
    place()
    together = threading.Barrier(8)

    def once(_: int) -> Claim | None:
        together.wait(10)
        return claim(job_id, Stage.TRAIN)

    with ThreadPoolExecutor(8) as pool:
        taken = [one for one in pool.map(once, range(8)) if one is not None]
    assert len(taken) == 1


def test_a_resumed_attempt_starts_from_the_newest_checkpoint() -> None:
    taken = running()
    checkpoint(taken, 100)
    checkpoint(taken, 200)
    end(taken.job_id, taken.fence, Outcome.DRAINED)
    place()
    again = claimed(taken.job_id, Stage.TRAIN)
    assert again.start_checkpoint is not None
    assert (again.start_checkpoint.step, again.start_checkpoint.url) == (200, "/checkpoints/200")
    assert records.attempt(again.job_id, again.fence).start_step == 200
    assert again.gpu_seconds_so_far > 0


# The lease


def test_renewing_extends_the_lease_until_the_attempt_ends() -> None:
    taken = running()
    before = records.attempt(taken.job_id, taken.fence).lease_until
    with transaction() as session:
        assert attempts.renew(session, taken.attempt_id, 600) == attempts.Renewal(None)
    after = records.attempt(taken.job_id, taken.fence).lease_until
    assert before is not None
    assert after is not None
    assert after - before > timedelta(seconds=500)
    end(taken.job_id, taken.fence, Outcome.DRAINED)
    with transaction() as session:
        assert attempts.renew(session, taken.attempt_id, 600) is None
        assert attempts.look(session, taken.attempt_id) is None
    assert records.attempt(taken.job_id, taken.fence).lease_until == after


def test_a_lease_that_ran_out_is_lost_and_its_gpu_in_doubt() -> None:
    taken = running()
    assert expire() == []
    records.let_lease_run_out(taken.job_id)
    assert expire() == [taken.job_id]
    found = job(taken.job_id)
    assert (found.state, found.losses) == (JobState.QUEUED, 1)
    assert records.attempt(taken.job_id, taken.fence).outcome == Outcome.LOST
    with transaction() as session:
        (gpu,) = gpus.list_gpus(session)
    assert gpu.state == "unknown"
    assert place() == []  # a trainer may still live there
    with transaction() as session:
        gpus.heartbeat(session, gpu.id, "session-1", reported="idle")
    assert [one.job_id for one in place()] == [taken.job_id]


def test_a_job_keeps_its_place_in_the_queue_when_its_worker_is_lost() -> None:
    taken = running()
    later = queued()
    records.let_lease_run_out(taken.job_id)
    expire()
    add_gpu()
    assert [one.job_id for one in place()] == [taken.job_id]
    assert state(later) == JobState.QUEUED


def test_a_renewal_that_comes_first_keeps_the_lease() -> None:
    """The expiry looks again once it has the locks."""
    taken = running()
    records.let_lease_run_out(taken.job_id)
    with transaction() as renewing:
        attempts.renew(renewing, taken.attempt_id, 60)  # not committed yet
        with ThreadPoolExecutor(1) as pool:
            expiring = pool.submit(expire)
            records.until_blocked()
            renewing.commit()
            assert expiring.result() == []
    assert state(taken.job_id) == JobState.RUNNING


def test_losses_without_a_new_checkpoint_fail_the_job() -> None:
    taken = running()
    for losses in range(1, settings().max_losses):
        records.let_lease_run_out(taken.job_id)
        expire()
        assert (state(taken.job_id), job(taken.job_id).losses) == (JobState.QUEUED, losses)
        add_gpu()
        place()
        taken = claimed(taken.job_id, Stage.TRAIN)
    records.let_lease_run_out(taken.job_id)
    expire()
    failed = job(taken.job_id)
    assert failed.state == JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == WorkerLostError.code
    assert "3 times" in failed.error["message"]
    assert failed.finished_at is not None


def test_a_new_checkpoint_clears_the_count_of_losses() -> None:
    taken = running()
    end(taken.job_id, taken.fence, Outcome.LOST)
    place()
    taken = claimed(taken.job_id, Stage.TRAIN)
    assert job(taken.job_id).losses == 1
    checkpoint(taken, 10)
    assert job(taken.job_id).losses == 0


def test_lost_preparation_is_run_again() -> None:
    job_id = submit()
    records.place_preparation()
    claimed(job_id, Stage.PREPROCESS)
    records.let_lease_run_out(job_id)
    assert expire() == [job_id]
    assert state(job_id) == JobState.PENDING
    assert records.place_preparation() == 1
    assert claim(job_id, Stage.PREPROCESS) is not None


def test_a_new_session_ends_what_the_older_one_held() -> None:
    taken = running()
    other = add_gpu(1)
    gpu_id = add_gpu(worker_session="session-2")
    with transaction() as session:
        assert attempts.end_session_attempts(session, other, "session-2") == []
        assert attempts.end_session_attempts(session, gpu_id, "session-1") == []
        assert attempts.end_session_attempts(session, gpu_id, "session-2") == [taken.job_id]
        assert attempts.end_session_attempts(session, gpu_id, "session-2") == []
    assert (state(taken.job_id), job(taken.job_id).losses) == (JobState.QUEUED, 1)


def test_a_placement_nobody_claimed_is_left_to_the_new_session() -> None:
    add_gpu()
    job_id = queued()
    place()
    gpu_id = add_gpu(worker_session="session-2")
    with transaction() as session:
        assert attempts.end_session_attempts(session, gpu_id, "session-2") == []
    assert claim(job_id, Stage.TRAIN, worker_session="session-2") is not None

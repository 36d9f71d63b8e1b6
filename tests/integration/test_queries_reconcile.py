"""What the dispatcher repairs, and what it leaves alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from sqlalchemy import func, select, text

from models.queries import attempts, gpus, outbox, reconcile
from models.session import transaction
from models.states import JobState, Outcome, Stage
from models.tables import Ticket
from tests import records
from tests.records import (
    STALE_SECONDS,
    add_gpu,
    claim,
    claimed,
    end,
    job,
    place,
    queued,
    running,
    state,
    submit,
)

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def withdraw() -> list[str]:
    with transaction() as session:
        return reconcile.withdraw_unclaimed(session, STALE_SECONDS)


def resend(seconds: float = 30) -> int:
    with transaction() as session:
        return reconcile.resend_unclaimed(session, seconds)


def waiting() -> list[Ticket]:
    with transaction() as session:
        return outbox.unsent(session)


def send_all() -> None:
    with transaction() as session:
        outbox.mark_sent(session, [ticket.id for ticket in outbox.unsent(session)])


def age(seconds: float) -> None:
    """Let everything have happened that much earlier."""
    with transaction() as session:
        for table, columns in {
            "attempts": ["placed_at", "stage_at"],
            "outbox": ["sent_at"],
            "gpus": ["heartbeat_at"],
        }.items():
            for column in columns:
                session.execute(
                    text(f"UPDATE {table} SET {column} = {column} - make_interval(secs => :s)"),  # noqa: S608 (names of our own)
                    {"s": seconds},
                )


# Placements that nobody claimed


def test_a_placement_on_a_gpu_that_went_away_is_withdrawn() -> None:
    add_gpu()
    job_id = queued()
    (placed,) = place()
    assert withdraw() == []
    age(STALE_SECONDS + 1)
    assert withdraw() == [job_id]
    assert withdraw() == []
    found = job(job_id)
    assert (found.state, found.losses) == (JobState.QUEUED, 0)
    assert found.fence == placed.fence + 1
    assert records.attempt(job_id, placed.fence).outcome == Outcome.WITHDRAWN
    assert claim(job_id, Stage.TRAIN, fence=placed.fence) is None
    add_gpu()  # it is back
    assert [one.fence for one in place()] == [placed.fence + 2]


@pytest.mark.parametrize("how", ["stopped", "held"])
def test_a_placement_on_a_gpu_that_takes_no_job_is_withdrawn_at_once(how: str) -> None:
    gpu_id = add_gpu()
    job_id = queued()
    place()
    with transaction() as session:
        if how == "stopped":
            gpus.mark_gone(session, gpu_id, "session-1")
        else:
            gpus.heartbeat(session, gpu_id, "session-1", reported="held")
    assert withdraw() == [job_id]


def test_what_was_claimed_is_never_withdrawn() -> None:
    taken = running()
    age(STALE_SECONDS + 1)
    assert withdraw() == []
    assert state(taken.job_id) == JobState.RUNNING


def test_a_claim_that_comes_first_is_not_withdrawn() -> None:
    """The withdrawal looks again once it has the lock on the job."""
    add_gpu()
    job_id = queued()
    (placed,) = place()
    age(STALE_SECONDS + 1)
    with transaction() as claiming:
        attempts.claim(
            claiming,
            job_id,
            placed.fence,
            Stage.TRAIN,
            worker="w",
            worker_session="session-1",
            lease_seconds=60,
        )
        assert withdraw() == []  # passed over while the claim has the row
    assert withdraw() == []
    assert state(job_id) == JobState.RUNNING


# Tickets


def test_a_ticket_that_nobody_claimed_is_published_again() -> None:
    add_gpu()
    job_id = queued()
    (placed,) = place()
    send_all()
    assert resend() == 0  # it may still be on its way
    age(31)
    assert resend() == 1
    (again,) = waiting()
    assert (again.job_id, again.fence, again.stage) == (job_id, placed.fence, "train")
    assert (again.queue, again.evaluate) == (placed.queue, True)
    assert resend() == 0  # one is on its way to the relay already


def test_a_lost_ticket_of_preparation_is_published_again() -> None:
    submit()
    records.place_preparation()
    send_all()
    age(31)
    assert resend() == 1
    assert waiting()[0].queue == "celora.cpu"


def sendings(*, within: int, step: int) -> list[int]:
    """After how many seconds tickets are published again, when nobody ever consumes."""
    times = []
    for seconds in range(step, within, step):
        age(step)
        if resend():
            times.append(seconds)
            send_all()
    return times


@pytest.mark.parametrize("what", ["preparation", "training"])
def test_tickets_that_nobody_consumes_are_repeated_every_minute(what: str) -> None:
    """Each is still in the broker's queue, most likely, and comes back when a worker does."""
    if what == "preparation":
        submit()
        records.place_preparation()
    else:
        add_gpu()
        queued()
        place()
    send_all()
    times = sendings(within=600, step=10)
    pauses = [later - earlier for earlier, later in pairwise([0, *times])]
    assert pauses[0] <= 40
    assert pauses == sorted(pauses)
    assert max(pauses) <= 70


def test_a_ticket_that_the_relay_has_not_sent_is_not_repeated() -> None:
    add_gpu()
    queued()
    place()
    age(3600)  # the broker is down for an hour
    assert resend() == 0


def test_a_claimed_stage_is_not_published_again() -> None:
    running()
    send_all()
    age(3600)
    assert resend() == 0


def test_a_tail_that_was_lost_is_published_again() -> None:
    taken = running()
    send_all()
    age(3600)
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    assert resend() == 0  # the chain publishes it itself, most likely
    age(31)
    assert resend() == 1
    (tail,) = waiting()
    assert (tail.stage, tail.fence) == ("evaluate", taken.fence)
    claimed(taken.job_id, Stage.EVALUATE)
    send_all()
    age(31)
    assert resend() == 0


def test_of_two_dispatchers_one_publishes_again() -> None:
    add_gpu()
    queued()
    place()
    send_all()
    age(31)
    with transaction() as first:
        assert reconcile.resend_unclaimed(first, 30) == 1
        assert resend() == 0


def test_tickets_of_attempts_that_are_over_are_neither_sent_nor_kept() -> None:
    taken = running()
    place()
    sent_and_live = submit()
    records.place_preparation()
    end(taken.job_id, taken.fence, Outcome.DRAINED)
    assert [ticket.job_id for ticket in waiting()] == [sent_and_live]
    with transaction() as session:
        outbox.prune(session)
        left = session.scalars(select(Ticket.job_id)).all()
    assert left == [sent_and_live]


def test_a_ticket_that_waits_for_days_is_kept_once() -> None:
    job_id = submit()
    records.place_preparation()
    for seconds in (31, 62, 124):  # no CPU worker: it is sent again and again
        send_all()
        age(seconds)
        assert resend() == 1
        with transaction() as session:
            outbox.prune(session)
    (kept,) = waiting()
    assert kept.job_id == job_id
    with transaction() as session:
        assert session.scalars(select(Ticket.id)).all() == [kept.id]


def test_a_ticket_that_fails_goes_behind_the_others() -> None:
    first, second = submit(), submit()
    records.place_preparation()
    with transaction() as session:
        bad = outbox.unsent(session)[0]
        outbox.mark_error(session, bad.id, "no\0 route")
    tickets = waiting()
    assert [ticket.job_id for ticket in tickets] == [second, first]
    assert (tickets[1].send_attempts, tickets[1].last_error) == (1, "no\ufffd route")


# Several at once


def test_many_leases_that_run_out_are_ended_once_by_two_dispatchers() -> None:
    made = []
    for index in range(6):
        add_gpu(index)
        made.append(queued(f"tenant-{index % 3}"))
    place()
    for job_id in made:
        claimed(job_id, Stage.TRAIN)
        records.let_lease_run_out(job_id)

    def expire(_: int) -> list[str]:
        with transaction() as session:
            return reconcile.expire_leases(session)

    with ThreadPoolExecutor(2) as pool:
        ended = [job_id for some in pool.map(expire, range(2)) for job_id in some]
    assert sorted(ended) == sorted(made)
    assert {job(job_id).losses for job_id in made} == {1}


@pytest.mark.fault(21)
def test_leases_are_compared_on_the_databases_clock() -> None:
    """The lease is a distance from the database's own now; no worker's time enters it."""
    taken = running()
    with transaction() as session:
        attempts.renew(session, taken.attempt_id, 0.05)
        session.execute(select(func.pg_sleep(0.1)))
        assert reconcile.expire_leases(session) == [taken.job_id]

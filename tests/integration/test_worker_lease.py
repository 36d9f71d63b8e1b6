"""The lease on a real Postgres, over a line that fails; times are compressed by settings."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from gpu_worker.lease import Lease, LeaseLostError, now
from models.queries import attempts, history, jobs
from models.session import transaction
from models.states import Outcome, StopReason
from models.tables import Attempt
from tests import records
from tests.environment import variables
from tests.tcp_proxy import TcpProxy, proxy_to

LEASE_SECONDS = 3.0
MARGIN_SECONDS = 1.0


@pytest.fixture
def line(database: str) -> Iterator[TcpProxy]:
    """All connections of this process go through a proxy, with short leases."""
    url = make_url(database)
    with proxy_to(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port)
        with variables(
            CELORA_DATABASE_URL=through.render_as_string(hide_password=False),
            CELORA_LEASE_SECONDS=str(LEASE_SECONDS),
            CELORA_RENEW_SECONDS="0.5",
            CELORA_CONTROL_SECONDS="0.1",
            CELORA_KILL_MARGIN_SECONDS=str(MARGIN_SECONDS),
        ):
            records.clear()
            yield proxy
            proxy.restore()


class Held:
    """A lease on a claimed attempt, and what it told."""

    def __init__(self) -> None:
        self.claim = records.running()
        self.told: queue.Queue[tuple[str, StopReason | str, float]] = queue.Queue()
        with transaction() as session:
            sent_at = now()
            attempts.renew(session, self.claim.attempt_id, LEASE_SECONDS)
        self.lease = Lease(
            self.claim.attempt_id,
            claim_sent_at=sent_at,
            on_stop=lambda reason: self.told.put(("stop", reason, now())),
            on_lost=lambda why: self.told.put(("lost", why, now())),
        )

    def next(self, seconds: float) -> tuple[str, StopReason | str, float]:
        return self.told.get(timeout=seconds)

    def seconds_left(self) -> float:
        """Of the lease in the database, by its clock."""
        with transaction() as session:
            left = session.scalar(
                select(func.extract("epoch", Attempt.lease_until - func.clock_timestamp())).where(
                    Attempt.id == self.claim.attempt_id
                )
            )
        assert left is not None
        return float(left)


@pytest.fixture
def held(line: TcpProxy) -> Iterator[Held]:  # noqa: ARG001 (it has to be up)
    held = Held()
    yield held
    held.lease.close()


def test_it_is_renewed_for_as_long_as_it_is_held(held: Held) -> None:
    ends = time.monotonic() + 1.5 * LEASE_SECONDS
    while time.monotonic() < ends:
        assert held.seconds_left() > MARGIN_SECONDS
        time.sleep(0.1)
    assert held.told.empty()
    assert not held.lease.lost


def test_the_deadline_lies_before_the_leases_end(held: Held) -> None:
    for _ in range(5):
        mine = held.lease.deadline - now()
        assert mine <= held.seconds_left() - MARGIN_SECONDS + 0.05
        time.sleep(0.3)


def test_a_stop_is_told_once_and_again_when_a_stronger_one_comes(held: Held) -> None:
    job_id = held.claim.job_id
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.PAUSE)
    assert held.next(2)[:2] == ("stop", StopReason.PAUSE)
    held.lease.ask(StopReason.DRAIN)  # weaker: it leaves already
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    assert held.next(2)[:2] == ("stop", StopReason.CANCEL)
    time.sleep(0.5)
    assert held.told.empty()


def test_an_attempt_that_another_ended_is_lost_at_once(held: Held) -> None:
    records.end(held.claim.job_id, held.claim.fence, Outcome.LOST)
    kind, why, _ = held.next(2)
    assert (kind, why) == ("lost", "another ended it")
    assert held.lease.lost


def test_an_outage_shorter_than_the_lease_is_survived(held: Held, line: TcpProxy) -> None:
    line.cut()
    time.sleep(1.0)
    assert line.refused > 0
    line.restore()
    time.sleep(LEASE_SECONDS)
    assert held.told.empty()
    assert held.seconds_left() > MARGIN_SECONDS


@pytest.mark.parametrize("fault", ["cut", "go_silent"])
def test_a_longer_outage_is_noticed_before_the_lease_ends(
    held: Held, line: TcpProxy, fault: str
) -> None:
    before = held.seconds_left()
    began = now()
    getattr(line, fault)()
    kind, _, at = held.next(LEASE_SECONDS)
    assert kind == "lost"
    assert at - began < before - MARGIN_SECONDS + 0.7  # a renewal may have been on its way
    assert line.refused + line.held > 0
    with pytest.raises(LeaseLostError):
        held.lease.insist(lambda session: history.count(session, "never"))


def test_insisting_outlasts_a_short_outage_and_writes_once(held: Held, line: TcpProxy) -> None:
    line.cut()
    done = threading.Event()

    def write(session: Session) -> None:
        history.count(session, "insisted")

    def insist() -> None:
        held.lease.insist(write)
        done.set()

    threading.Thread(target=insist, daemon=True).start()
    assert not done.wait(0.8)
    line.restore()
    assert done.wait(3)


def test_the_end_that_it_is_asked_to_write_is_no_loss(held: Held) -> None:
    """Else its trainer would be killed, which is warm for the next job."""

    def end(_: Session) -> None:
        records.end(held.claim.job_id, held.claim.fence, Outcome.COMPLETED)  # on record already
        with pytest.raises(queue.Empty):  # the keeper looks several times meanwhile
            held.next(1)

    held.lease.conclude(end)
    assert not held.lease.lost
    assert held.told.empty()


def test_a_closed_lease_tells_nothing_more(held: Held) -> None:
    held.lease.close()
    with transaction() as session:
        jobs.request_stop(session, held.claim.job_id, StopReason.CANCEL)
    held.lease.ask(StopReason.DRAIN)
    time.sleep(LEASE_SECONDS)
    assert held.told.empty()

"""The dispatcher's passes and its loop, with a publish of the test's own at the broker's edge."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text

from models.queries import outbox
from models.session import transaction
from models.states import JobState, Outcome, Stage
from models.tables import Ticket
from tasks.dispatcher import loop, place, reconcile, relay
from tests import records
from tests.environment import variables
from tests.postgres_server import PostgresServer
from tests.records import add_gpu, claimed, job, queued, running, state, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


class RefusedError(Exception):
    """What the broker's client raises, whatever it is."""


class Broker:
    """Where the relay publishes to: takes tickets, or refuses them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.tried = 0
        self.up = True
        self.poison: str | None = None

    def publish(self, ticket: Ticket) -> None:
        self.tried += 1
        if not self.up or ticket.job_id == self.poison:
            raise RefusedError("no broker here")
        self.sent.append((ticket.job_id, ticket.fence))


def until(what: str, condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


@contextmanager
def dispatching(broker: Broker, **settings: str) -> Iterator[None]:
    stop = threading.Event()
    url = os.environ["CELORA_DATABASE_URL"]
    with variables(CELORA_DATABASE_URL=url, **settings):
        thread = threading.Thread(target=loop.run, args=(stop, broker.publish))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)
            assert not thread.is_alive()


def unsent() -> list[Ticket]:
    with transaction() as session:
        return outbox.unsent(session)


# One pass at a time


def test_a_pass_places_preparation_and_training() -> None:
    add_gpu()
    queued()
    submit()
    assert place.pass_once() == 2
    assert place.pass_once() == 0


def test_the_relay_sends_each_ticket_once() -> None:
    broker = Broker()
    made = [submit() for _ in range(3)]
    records.place_preparation()
    assert relay.relay_once(broker.publish) == 3
    assert relay.relay_once(broker.publish) == 0
    assert broker.sent == [(job_id, 1) for job_id in made]


def test_a_refused_ticket_stays_and_says_why() -> None:
    broker = Broker()
    broker.up = False
    submit()
    records.place_preparation()
    with pytest.raises(RefusedError):
        relay.relay_once(broker.publish)
    (ticket,) = unsent()
    assert (ticket.send_attempts, ticket.last_error) == (1, "RefusedError('no broker here')")
    broker.up = True
    assert relay.relay_once(broker.publish) == 1


def test_a_ticket_that_can_never_be_sent_does_not_hold_up_the_others() -> None:
    broker = Broker()
    made = [submit() for _ in range(3)]
    broker.poison = made[0]
    records.place_preparation()
    for _ in range(2):
        with pytest.raises(RefusedError):
            relay.relay_once(broker.publish)
    assert [job_id for job_id, _ in broker.sent] == made[1:]


def test_a_repairing_pass_does_all_repairs() -> None:
    taken = running()
    records.let_lease_run_out(taken.job_id)
    assert reconcile.pass_once() == 1
    assert state(taken.job_id) == JobState.QUEUED
    with transaction() as session:
        assert session.query(Ticket).count() == 0  # those of attempts that are over


# The loop


def test_a_job_is_dispatched_by_its_notification_not_by_the_poll() -> None:
    broker = Broker()
    with dispatching(broker, CELORA_POLL_SECONDS="30"):
        first = submit()
        until("the first ticket", lambda: (first, 1) in broker.sent)
        began = time.monotonic()
        second = submit()
        until("the second ticket", lambda: (second, 1) in broker.sent)
        assert time.monotonic() - began < 2  # milliseconds, on a machine with nothing else to do
        ready = queued_by_hand()
        add_gpu()
        until("the GPU's ticket", lambda: (ready, job(ready).fence) in broker.sent)


def queued_by_hand() -> str:
    """A job for a GPU, without the notifications of its way there."""
    job_id = submit()
    until("its preparation", lambda: job(job_id).fence == 1)
    taken = claimed(job_id, Stage.PREPROCESS)
    records.end(job_id, taken.fence, Outcome.COMPLETED)
    return job_id


def test_a_broker_that_is_down_holds_up_no_placing(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    broker.up = False
    with caplog.at_level(logging.WARNING), dispatching(broker, CELORA_POLL_SECONDS="0.2"):
        job_id = submit()
        until("several tries", lambda: broker.tried >= 3)
        assert job(job_id).fence == 1
        placed_meanwhile = submit()
        until("a placement", lambda: job(placed_meanwhile).fence == 1)
        broker.up = True
        until("both tickets", lambda: len(broker.sent) == 2)
    said = [record.message for record in caplog.records if "broker" in record.message]
    assert len(said) == 2
    assert "do not" not in said[0]
    assert "no broker here" in said[0]
    assert "is back" in said[1]


def test_an_outage_of_postgres_is_lived_through_and_said_once(
    database: str, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = make_url(database).database
    assert name is not None
    broker = Broker()
    with caplog.at_level(logging.WARNING), dispatching(broker, CELORA_POLL_SECONDS="0.2"):
        first = submit()
        until("the first ticket", lambda: (first, 1) in broker.sent)
        with postgres.connect() as server:
            allow(server, name, connections=False)
            until("the outage was noticed", lambda: "does not answer" in caplog.text)
            time.sleep(1)  # several tries fall into it
            allow(server, name, connections=True)
        until("the outage is over", lambda: "it is back" in caplog.text)
        second = submit()
        until("a job after it", lambda: (second, 1) in broker.sent)
    assert caplog.text.count("Postgres does not answer: ") == 2  # its beginning and its end


def allow(server: psycopg.Connection, name: str, *, connections: bool) -> None:
    """Refuse connections to a database and end those it has, or let them in again."""
    server.execute(
        sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
            sql.Identifier(name), sql.SQL(str(connections))
        )
    )
    server.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
    )


def test_two_dispatchers_share_the_work() -> None:
    one, other = Broker(), Broker()
    stop = threading.Event()
    threads = [
        threading.Thread(target=loop.run, args=(stop, broker.publish)) for broker in (one, other)
    ]
    for thread in threads:
        thread.start()
    made = [submit() for _ in range(8)]
    until("all tickets", lambda: {job_id for job_id, _ in one.sent + other.sent} == set(made))
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert all(job(job_id).fence == 1 for job_id in made)


def test_a_fault_in_one_pass_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker()
    taken = running()
    records.end(taken.job_id, taken.fence, Outcome.DRAINED)
    with (
        no_tickets_for_training(),
        caplog.at_level(logging.ERROR),
        dispatching(broker, CELORA_POLL_SECONDS="0.2"),
    ):
        until("the fault was met", lambda: "a pass failed" in caplog.text)
        until("and met again", lambda: caplog.text.count("a pass failed") > 1)
        other = submit()
        until("its ticket all the same", lambda: (other, 1) in broker.sent)


@contextmanager
def no_tickets_for_training() -> Iterator[None]:
    """The database refuses each placement on a GPU."""
    with transaction() as session:
        session.execute(
            text("ALTER TABLE outbox ADD CONSTRAINT refused CHECK (stage <> 'train') NOT VALID")
        )
    try:
        yield
    finally:
        with transaction() as session:
            session.execute(text("ALTER TABLE outbox DROP CONSTRAINT refused"))


def test_sigterm_stops_it_in_good_order(database: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "celora", "dispatcher"],
        env=os.environ | {"CELORA_DATABASE_URL": database, "CELORA_POLL_SECONDS": "30"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "dispatching" in process.stderr.readline()
        job_id = submit()
        until("it works", lambda: job(job_id).fence == 1)
        process.terminate()
        said = process.stderr.read()
        assert process.wait(10) == 0
    assert "stopped" in said
    assert "Traceback" not in said

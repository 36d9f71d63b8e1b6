"""Waiting for a job: woken by its end, patient with the database, and not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

import celora
from celora.follow import POLL_SECONDS, follow
from models.errors import UnavailableError
from models.queries.attempts import Claim
from models.session import engine, transaction
from models.states import Outcome
from tests import records
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


@contextmanager
def waiting(job_id: str) -> Iterator[Callable[[], celora.Job]]:
    """wait() in a thread that has begun to listen; gives a function that returns its answer."""
    answer: list[celora.Job] = []
    thread = threading.Thread(target=lambda: answer.append(celora.wait(job_id, timeout=60)))
    thread.start()
    until(lambda: listeners() > 0)

    def result() -> celora.Job:
        thread.join(30)
        assert not thread.is_alive()
        return answer[0]

    yield result
    thread.join(60)


def listeners() -> int:
    """Connections of this database that wait for notifications."""
    with engine().connect() as connection:
        return int(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND query LIKE 'LISTEN%' AND state = 'idle'"
                )
            )
            or 0
        )


def end(claim: Claim, outcome: Outcome) -> None:
    if outcome is Outcome.PAUSED:
        celora.pause(claim.job_id)
    records.end(claim.job_id, claim.fence, outcome)


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.CANCELLED, Outcome.PAUSED])
def test_wait_is_woken_by_the_end_not_by_its_poll(outcome: Outcome) -> None:
    claim = records.running(evaluate=False)
    with waiting(claim.job_id) as result:
        began = time.monotonic()
        end(claim, outcome)
        assert result().state.value == outcome.value
    assert time.monotonic() - began < POLL_SECONDS / 2


def test_wait_returns_at_once_when_it_is_over() -> None:
    job = celora.cancel(records.submit())
    assert celora.wait(job, timeout=0) == job


def test_wait_gives_up_after_its_timeout() -> None:
    job_id = records.submit()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=job_id):
        celora.wait(job_id, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2


def test_wait_goes_on_after_its_connections_were_cut() -> None:
    claim = records.running(evaluate=False)
    with waiting(claim.job_id) as result:
        with engine().connect() as connection:
            cut = connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            ).all()
        assert cut
        until(lambda: listeners() > 0)
        end(claim, Outcome.COMPLETED)
        assert result().state == "completed"


def test_a_cut_connection_is_told_and_then_forgotten() -> None:
    job_id = records.submit()
    seen = follow(job_id, poll_seconds=0.05)
    assert isinstance(next(seen), celora.Job)
    with transaction() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
        )
    assert isinstance(next(seen), UnavailableError)
    assert isinstance(next(seen), celora.Job)

"""Connections that break while nobody uses them."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import make_url, text

import models.session
from models.session import transaction

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def broken(database: str) -> int:
    """The pid of the server process behind our pooled connection, which is gone."""
    with transaction() as session:
        pid = int(session.scalars(_PID).one())
    url = make_url(database).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as killer:
        assert killer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)
    return pid


def test_a_closed_connection_is_replaced_before_it_is_used(broken: int) -> None:
    with transaction() as session:
        assert session.scalars(_PID).one() != broken


def test_one_that_nobody_used_for_a_while_is_asked(
    broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.session, "_TRUSTED_SECONDS", 0.0)
    monkeypatch.setattr(models.session, "_has_news", lambda _: False)
    with transaction() as session:
        assert session.scalars(_PID).one() != broken


def test_a_living_one_is_used_again() -> None:
    pids = set()
    for _ in range(3):
        with transaction() as session:
            pids.add(session.scalars(_PID).one())
    assert len(pids) == 1


_PID = text("SELECT pg_backend_pid()")

"""Connections to Postgres: one engine a process, short transactions, time-outs on everything."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock

import psycopg
from pydantic_core import to_json
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from models.errors import CeloraError, SetupError, UnavailableError
from models.settings import settings

# Sent with the connection, so that no session of ours can hold a snapshot or a lock for long:
# a transaction left open slows every placement (see docs/decisions).
_SERVER_OPTIONS = (
    "-c idle_in_transaction_session_timeout=5s -c lock_timeout=5s -c statement_timeout=30s"
    # Compiling a statement costs a hundred times what running ours takes, whenever the planner's
    # guess for a table without statistics is high (tried: half of Postgres's time).
    " -c timezone=UTC -c jit=off"
)

# A connection that was used this recently, and that the server has not closed since, is taken to be
# alive: asking would cost each transaction a round trip.
_TRUSTED_SECONDS = 1.0


def connect_arguments() -> dict[str, object]:
    """libpq arguments for every connection: a silent network is noticed within 10 seconds."""
    return {
        "options": _SERVER_OPTIONS,
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


@lru_cache(maxsize=4)
def engine_for(url: str) -> Engine:
    made = create_engine(
        url, connect_args=connect_arguments(), pool_size=5, json_serializer=_to_json
    )
    event.listen(made, "checkin", _note_use)
    event.listen(made, "checkout", _require_living)
    return made


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _require_living(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Have the pool replace a connection that broke while nobody used it."""
    used_at = record.info.get("used_at")
    if used_at is None:
        return  # a new one
    if time.monotonic() - used_at < _TRUSTED_SECONDS and not _has_news(connection):
        return
    try:
        # Outside a transaction: psycopg forgets its prepared statements at every rollback.
        connection.autocommit = True
        connection.cursor().execute(";")
        connection.autocommit = False
    except psycopg.Error as error:
        raise InvalidatePoolError from error


def _has_news(connection: DBAPIConnection) -> bool:
    """Whether the server has sent something unasked: its good-bye, most likely."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def engine() -> Engine:
    """The process's engine. Call only after a fork: a connection must not be shared."""
    with _one_at_a_time:  # else two threads that come first make an engine each, and one is lost
        return engine_for(settings().resolved_database_url)


_one_at_a_time = Lock()


def forget_connections() -> None:
    """In a forked child: the parent's connections are not ours. Neither used nor closed."""
    if engine_for.cache_info().currsize:
        engine().dispose(close=False)
        engine_for.cache_clear()


@contextmanager
def transaction() -> Iterator[Session]:
    """One short transaction: commits on success, rolls back on error.

    Raises UnavailableError when the server cannot be reached, or ended the connection or gave up on
    a lock, so that callers retry on one error; SetupError on a database without our tables.
    """
    try:
        with Session(engine(), expire_on_commit=False) as session, session.begin():
            yield session
    except DBAPIError as error:
        if (ours := explained(error)) is None:
            raise
        raise ours from error


def explained(error: DBAPIError) -> CeloraError | None:
    """The error of ours that a database error means; none when it is a fault of the program."""
    reason = str(error.orig or error).strip().partition("\n")[0]
    if isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated:
        return UnavailableError(
            f"the database did not answer: {reason}",
            remedy="check CELORA_DATABASE_URL and `celora doctor`; is `celora up` running?",
        )
    if getattr(error.orig, "sqlstate", None) in _OTHER_SCHEMA:
        return SetupError(
            f"the database is not of this version: {reason}", remedy="run `celora db upgrade`"
        )
    return None


_OTHER_SCHEMA = {"42P01", "42703"}  # undefined_table, undefined_column


def _to_json(value: object) -> str:
    """JSON that Postgres takes: NaN and infinity become null, a NUL character its replacement."""
    text = to_json(value, inf_nan_mode="null").decode()
    return _NUL.sub("\\1\ufffd", text)


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")  # an escape, not the text of one (\\u0000)

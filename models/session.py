"""Connections to Postgres: one engine a process, short transactions, time-outs on everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from models.errors import UnavailableError
from models.settings import settings

# Sent with the connection, so that no session of ours can hold a snapshot or a lock for long:
# a transaction left open slows every placement (see docs/decisions).
_SERVER_OPTIONS = (
    "-c idle_in_transaction_session_timeout=5s -c lock_timeout=5s -c statement_timeout=30s"
    " -c timezone=UTC"
)


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
    return create_engine(url, connect_args=connect_arguments(), pool_pre_ping=True, pool_size=5)


def engine() -> Engine:
    """The process's engine. Call only after a fork: a connection must not be shared."""
    return engine_for(settings().resolved_database_url)


@contextmanager
def transaction() -> Iterator[Session]:
    """One short transaction: commits on success, rolls back on error.

    Raises UnavailableError when the server cannot be reached, so that callers retry on one error.
    """
    try:
        with Session(engine(), expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, InterfaceError) as error:
        reason = str(error.orig or error).strip().splitlines()[0]
        raise UnavailableError(
            f"the database did not answer: {reason}",
            remedy="check CELORA_DATABASE_URL and `celora doctor`; is `celora up` running?",
        ) from error

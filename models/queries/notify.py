"""LISTEN on a connection of its own: wake-ups from Postgres, without a poll."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy.exc import InterfaceError, OperationalError

from models.errors import UnavailableError
from models.session import engine


@dataclass(frozen=True, slots=True)
class Listener:
    """An open LISTEN. One thread waits on it at a time."""

    connection: psycopg.Connection

    def wait(self, timeout_seconds: float) -> list[str]:
        """Payloads of the notifications that came, all that are at hand; empty after the time-out.

        Raises UnavailableError when the connection is gone: what was sent meanwhile is lost, so
        the caller looks at the tables after it has connected again.
        """
        try:
            first = self.connection.notifies(timeout=timeout_seconds, stop_after=1)
            return [notification.payload for notification in first]
        except psycopg.Error as error:
            raise _lost(error) from error


@contextmanager
def listen(channel: str) -> Iterator[Listener]:
    """Listen to a channel until the block ends. Raises UnavailableError."""
    try:
        with engine().connect() as pooled:
            pooled.detach()  # never back into the pool: it would go on listening there
            connection = pooled.connection.driver_connection
            assert isinstance(connection, psycopg.Connection)  # noqa: S101 (narrows the type)
            connection.autocommit = True
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            yield Listener(connection)
    except (OperationalError, InterfaceError, psycopg.Error) as error:
        raise _lost(error) from error


def _lost(error: Exception) -> UnavailableError:
    reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return UnavailableError(
        f"the database did not answer: {reason}",
        remedy="check CELORA_DATABASE_URL and `celora doctor`; is `celora up` running?",
    )

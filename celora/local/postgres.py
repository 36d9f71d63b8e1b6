"""The embedded PostgreSQL server: made, started, attached to and stopped in a folder of its own.

    data/             the cluster, private to the server's user
    socket/           0700: who can reach it may connect as any role; there is no TCP listener
    postgresql.conf   written anew at each start; your own settings go into local.conf beside it
    postgres.log      what the server said

It outlives an owner that was killed; the next start attaches to it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from celora.local.binaries import MAJOR, Runner, runner
from models.errors import SetupError

START_SECONDS = 120  # crash recovery after a power cut may take its time
STOP_SECONDS = 60
_LONGEST_SOCKET = 107 - len("/.s.PGSQL.5432")  # bytes in sockaddr_un
_LARGEST_LOG = 10 * 1024**2

# For a small machine that trains beside it. Durability is not traded: the rows are the truth.
_CONFIGURATION = """\
# Written by Celora at each start. Put your own settings into local.conf beside this file.
listen_addresses = ''
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
hba_file = '{hba}'
max_connections = 100
shared_buffers = 64MB
maintenance_work_mem = 32MB
wal_level = minimal
max_wal_senders = 0
max_wal_size = 256MB
io_method = sync
jit = off
max_parallel_workers_per_gather = 0
autovacuum_max_workers = 1
idle_in_transaction_session_timeout = 60s
log_checkpoints = off
log_timezone = UTC
timezone = UTC
include 'local.conf'
"""
_ACCESS = "local all all trust\n"


class EmbeddedPostgres:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.socket = folder / "socket"

    @property
    def url(self) -> str:
        """SQLAlchemy URL of database `celora` as role `celora`."""
        return f"postgresql+psycopg://celora@/celora?host={quote(str(self.socket))}"

    def start(self) -> bool:
        """Have the server run and its database exist. True: started; False: it ran already.

        Raises SetupError.
        """
        self._check_folder()
        with self._lock():
            programs = runner()
            started = self.running_pid() is None
            if started:
                self._check_host()
                self._clear_remains()
                self._make_cluster(programs)
                self._launch(programs)
            self._wait_until_ready()
            self._make_database()
        return started

    def stop(self) -> None:
        """Stop the server, rolling open transactions back. Nothing to do when it does not run."""
        if self.running_pid() is None:
            return
        with self._lock():
            if self.running_pid() is not None:
                runner().run(
                    "pg_ctl", "stop", "-D", str(self.data), "-m", "fast", "-w",
                    "-t", str(STOP_SECONDS), cwd=self.folder,
                )  # fmt: skip

    def running_pid(self) -> int | None:
        """The process that serves this folder, or None.

        A pid file alone proves nothing: after a crash its number may be another process's.
        """
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            return pid if self._serves(psutil.Process(pid)) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def connect(self, database: str = "postgres", role: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host=str(self.socket), dbname=database, user=role, autocommit=True, connect_timeout=5
        )

    def _check_folder(self) -> None:
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise SetupError(
                f"the path is too long for a socket (at most {_LONGEST_SOCKET} bytes)",
                where=str(self.socket),
                remedy="set CELORA_HOME (the demo: --home) to a folder with a shorter path",
            )
        version = self.data / "PG_VERSION"
        found = version.read_text().strip() if version.is_file() else str(MAJOR)
        if found != str(MAJOR):
            raise SetupError(
                f"this data folder was made by PostgreSQL {found}; Celora now brings {MAJOR}",
                where=str(self.data),
                remedy=f"dump it with PostgreSQL {found}'s pg_dump and load it into a new folder, "
                "or move the folder away to begin with an empty database",
            )

    def _check_host(self) -> None:
        """Refuse to start what may still run elsewhere: homes are often shared over a network."""
        note = self.folder / "host"
        here = socket.gethostname()
        if (self.data / "postmaster.pid").exists() and note.exists():
            there = note.read_text().strip()
            if there != here:
                raise SetupError(
                    f"the database in this folder was started on host {there!r} and not stopped",
                    where=str(self.folder),
                    remedy=f"stop `celora up` there, or give this machine a CELORA_HOME of its own;"
                    f" if {there!r} is gone for good, delete {self.data / 'postmaster.pid'}",
                )
        note.write_text(here + "\n")

    def _clear_remains(self) -> None:
        """Remove the pid files of a server that crashed.

        PostgreSQL does so itself when the process is gone, but not when its number is another
        process's by now, nor (in a container whose first process reaps nobody) while it is a
        zombie. Only safe once the crashed server's children have left.
        """
        if not (self.data / "postmaster.pid").exists():
            return
        deadline = time.monotonic() + STOP_SECONDS
        while any(self._serves(process) for process in psutil.process_iter()):
            if time.monotonic() > deadline:
                raise SetupError(
                    "processes of a crashed server do not leave",
                    where=str(self.data),
                    remedy="end the processes named postgres that work in this folder",
                )
            time.sleep(0.05)
        (self.data / "postmaster.pid").unlink()
        (self.socket / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    def _serves(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and Path(process.cwd()).samefile(self.data)
        except (OSError, psutil.Error):
            return False

    def _make_cluster(self, programs: Runner) -> None:
        programs.own(self.socket)
        if not (self.data / "PG_VERSION").exists():
            # Made aside and renamed: a killed initdb leaves a folder that looks whole.
            staging = self.folder / "data.new"
            shutil.rmtree(staging, ignore_errors=True)
            programs.own(staging)
            programs.run(
                "initdb", "-D", str(staging), "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                cwd=self.folder,
            )  # fmt: skip
            staging.rename(self.data)
        access = self.folder / "pg_hba.conf"
        access.write_text(_ACCESS)
        configuration = self.folder / "postgresql.conf"
        configuration.write_text(
            _CONFIGURATION.format(socket=_quoted(self.socket), hba=_quoted(access))
        )
        local = self.folder / "local.conf"
        if not local.exists():
            local.write_text("# Your own settings; they win over postgresql.conf.\n")
        for path in (access, configuration, local):
            path.chmod(0o644)

    def _launch(self, programs: Runner) -> None:
        path = self.folder / "postgres.log"
        if path.exists() and path.stat().st_size > _LARGEST_LOG:
            path.rename(path.with_suffix(".log.1"))
        option = f"-c config_file={shlex.quote(str(self.folder / 'postgresql.conf'))}"
        with path.open("ab") as log:
            before = log.tell()
            try:
                programs.run(
                    "pg_ctl", "start", "-D", str(self.data), "-o", option, "-s", "-w",
                    "-t", str(START_SECONDS), cwd=self.folder, log=log.fileno(),
                )  # fmt: skip
            except SetupError:
                said = path.read_bytes()[before:].decode(errors="replace").strip()
                raise SetupError(
                    f"the embedded PostgreSQL did not start: {said[-600:]}",
                    where=str(path),
                    remedy="read that log; a full disk and a missing permission are usual causes",
                ) from None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or self.running_pid() is None:
                    raise SetupError(
                        f"the embedded PostgreSQL does not answer: {error}",
                        where=str(self.folder / "postgres.log"),
                        remedy="read that log",
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _make_database(self) -> None:
        with self.connect() as connection:
            # Not asked for first: the server logs nothing at this level, and there is no race.
            connection.execute("SET log_min_messages = fatal")
            with suppress(psycopg.errors.DuplicateObject):
                connection.execute("CREATE ROLE celora LOGIN")
            # `celora db grant-…` makes roles.
            connection.execute("ALTER ROLE celora CREATEROLE")
            with suppress(psycopg.errors.DuplicateDatabase):
                connection.execute("CREATE DATABASE celora OWNER celora")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time starts or stops the server of this folder."""
        # Root's server must reach what is below; an ordinary user's is nobody else's business.
        mode = 0o755 if os.geteuid() == 0 else 0o700
        for folder in [*reversed(self.folder.parents), self.folder]:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                folder.chmod(mode)
        with (self.folder / "lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _quoted(path: Path) -> str:
    """For a quoted string in postgresql.conf. A comma would split the list of socket folders."""
    text = str(path).replace("'", "''")
    return f'"{text}"' if "," in text else text

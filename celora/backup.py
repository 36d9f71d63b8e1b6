"""`celora db backup` and `celora db restore`: PostgreSQL's own programs, on any database of ours.

What comes of it is plain SQL, compressed: `gunzip -c FILE | psql URL` reads it without Celora too.
The programs are the embedded server's, so nothing has to be installed.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from sqlalchemy import make_url

import migrations
from celora.local.binaries import MAJOR, runner
from celora.local.home import HomeLock
from celora.local.postgres import EmbeddedPostgres
from celora.restored import Done, after_restore
from models.errors import InputError, SetupError, StateError
from models.queries.clock import server_version
from models.session import engine, transaction
from models.settings import settings

# Written by pg_dump for every server, refused by those before 17.
_NOT_FOR_ALL = b"SET transaction_timeout = 0;\n"
_HEADER_LINES = 40


def backup(file: Path) -> int:
    """Write the database as it is at this moment to `file`, which only its owner may read; returns
    its size. Raises SetupError, UnavailableError; InputError where the file is there already."""
    if file.exists():
        raise InputError("there is such a file already", where=str(file), remedy="name a new one")
    unfinished = file.with_name(f"{file.name}.unfinished")
    with _server(), suppress(FileExistsError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch(mode=0o600)
        try:
            _run(
                "pg_dump", "--format=plain", "--compress=gzip:6", "--no-owner", "--no-privileges",
                "--file", str(unfinished),
            )  # fmt: skip
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.rename(file)
        finally:
            unfinished.unlink(missing_ok=True)
    return file.stat().st_size


def restore(file: Path, *, without_files: bool = False) -> Done:
    """Read a backup into an empty database, all or nothing, bring it to this version's schema, and
    into step with the store. Raises CeloraError."""
    if not file.is_file():
        raise InputError("there is no such file", where=str(file), remedy="name a backup")
    with _server():
        url = settings().resolved_database_url
        if migrations.current(url) is not None:
            raise StateError(
                "the database is not empty",
                where=make_url(url).render_as_string(hide_password=True),
                remedy=_HOW_TO_EMPTY_OURS.format(folder=settings().embedded_postgres)
                if not settings().database_url
                else "make an empty database, and set CELORA_DATABASE_URL to it",
            )
        _load(file)
        migrations.upgrade(url)
        return after_restore(without_files=without_files)


_HOW_TO_EMPTY_OURS = "stop `celora up`, move {folder} away, and run this again"


@contextmanager
def _server() -> Iterator[None]:
    """Where it is the embedded one: it runs for the block, and no `celora up` starts meanwhile."""
    if settings().database_url:
        yield
        return
    embedded = EmbeddedPostgres(settings().embedded_postgres)
    if embedded.running_pid() is not None:
        yield
        return
    lock = HomeLock(settings().at_home())
    lock.acquire(patience_seconds=0, say=lambda _: None)
    try:
        embedded.start()
        yield
    finally:
        engine().dispose()
        embedded.stop()
        lock.release()


def _load(file: Path) -> None:
    try:
        with gzip.open(file, "rb") as content:
            header = [content.readline() for _ in range(_HEADER_LINES)]
            lines = b"".join(line for line in header if line != _NOT_FOR_ALL)
            if b"-- PostgreSQL database dump" not in lines:
                raise InputError(
                    "this is no backup of `celora db backup`",
                    where=str(file),
                    remedy="read a dump of your own with psql or pg_restore, and then run"
                    " `celora db after-restore`",
                )
            options = ("--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1")
            with (
                _started("psql", *options, "--output", os.devnull) as standard_input,
                suppress(BrokenPipeError),  # it has said why
            ):
                standard_input.write(lines)
                shutil.copyfileobj(content, standard_input, 1 << 20)
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"the backup is not whole: {error}", where=str(file)) from None


def _run(program: str, *arguments: str) -> None:
    with _started(program, *arguments):
        pass


@contextmanager
def _started(program: str, *arguments: str) -> Iterator[IO[bytes]]:
    """One of PostgreSQL's programs on our database: what it reads, until it has ended.

    Raises SetupError with what it said.
    """
    url = make_url(settings().resolved_database_url).set(drivername="postgresql")
    environment = os.environ | {"LC_ALL": "C", "PGCONNECT_TIMEOUT": "10"}
    if url.password is not None:  # not among the arguments, which everybody may read
        environment["PGPASSWORD"] = str(url.password)
    address = url.set(password=None).render_as_string(hide_password=False)
    process = subprocess.Popen(
        [_program(program), *arguments, "--dbname", address, "--no-password"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    standard_input = cast("IO[bytes]", process.stdin)
    try:
        yield standard_input
    except BaseException:
        process.kill()  # a half is rolled back
        process.communicate()
        raise
    with suppress(BrokenPipeError):
        standard_input.close()
    process.stdin = None
    _, said = process.communicate()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise SetupError(f"{program} failed: {words[-600:]}")


def _program(name: str) -> str:
    """From the embedded server's, which know every version up to their own; else the system's."""
    with transaction() as session:
        major = server_version(session) // 10_000
    if major <= MAJOR:
        with suppress(SetupError):
            return str(runner().bin / name)
    found = shutil.which(name)
    if found is None:
        raise SetupError(
            f"there is no {name} for PostgreSQL {major}",
            remedy=f"install PostgreSQL's client programs, version {major}",
        )
    return found

"""The embedded server: made, attached to, recovered, refused; as whoever runs the tests and as an
ordinary user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from celora.local import binaries
from celora.local.binaries import MAJOR
from celora.local.postgres import EmbeddedPostgres
from models.errors import SetupError
from tests.ordinary_user import as_ordinary_user


@contextmanager
def empty_folder() -> Iterator[Path]:
    # Not tmp_path: its parents are private, and root's server runs under another user.
    path = Path(tempfile.mkdtemp(prefix="celora-pg-"))
    path.chmod(0o755)
    (path / "postgres").mkdir()
    # Nothing here outlives the test, and syncing is most of the time it would take.
    (path / "postgres" / "local.conf").write_text("fsync = off\n")
    yield path / "postgres"
    pid = EmbeddedPostgres(path / "postgres").running_pid()
    if pid is not None:
        end(pid, signal.SIGQUIT)
    shutil.rmtree(path)


@pytest.fixture
def folder() -> Iterator[Path]:
    with empty_folder() as path:
        yield path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A folder that tests share, because making a cluster takes seconds on a busy disk. Each test
    begins with start(), which must cope with whatever the one before left."""
    with empty_folder() as path:
        yield path


def answer(server: EmbeddedPostgres, query: str) -> object:
    engine = create_engine(server.url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(query))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def end(pid: int, how: signal.Signals) -> None:
    os.kill(pid, how)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_starts_once_and_is_attached_to_after(cluster: Path) -> None:
    server = EmbeddedPostgres(cluster)
    server.stop()
    assert server.start() is True
    pid = server.running_pid()
    assert EmbeddedPostgres(cluster).start() is False
    assert server.running_pid() == pid
    assert answer(server, "SELECT current_user") == "celora"
    assert answer(server, "SELECT pg_get_userbyid(datdba) FROM pg_database"
                          " WHERE datname = current_database()") == "celora"  # fmt: skip
    assert str(answer(server, "SHOW server_version")).startswith(f"{MAJOR}.")
    server.stop()
    assert server.running_pid() is None


def test_nobody_reaches_it_over_the_network_or_through_the_socket_folder(cluster: Path) -> None:
    server = EmbeddedPostgres(cluster)
    server.start()
    pid = server.running_pid()
    assert pid is not None
    connections = psutil.Process(pid).net_connections(kind="inet")
    assert not [c for c in connections if c.status == psutil.CONN_LISTEN]
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert server.data.stat().st_mode & 0o777 == 0o700
    assert psutil.Process(pid).uids().real != 0


def test_survives_the_kill_of_its_owner(cluster: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from celora.local.postgres import EmbeddedPostgres\n"
        "EmbeddedPostgres(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cluster)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        owner.kill()
    server = EmbeddedPostgres(cluster)
    pid = server.running_pid()
    assert pid is not None
    assert server.start() is False
    assert server.running_pid() == pid


def test_recovers_what_was_committed_before_a_crash(cluster: Path) -> None:
    server = EmbeddedPostgres(cluster)
    server.start()
    answer(server, "CREATE TABLE kept AS SELECT 7 AS value")
    pid = server.running_pid()
    assert pid is not None
    end(pid, signal.SIGKILL)
    assert server.start() is True
    assert answer(server, "SELECT value FROM kept") == 7


def test_is_not_fooled_by_a_pid_file_that_names_another_process(cluster: Path) -> None:
    server = EmbeddedPostgres(cluster)
    server.start()
    server.stop()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n")
    assert server.running_pid() is None
    assert server.start() is True
    assert answer(server, "SELECT 1") == 1


def test_refuses_a_folder_of_another_major_version(folder: Path) -> None:
    server = EmbeddedPostgres(folder)
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(SetupError, match="made by PostgreSQL 16") as caught:
        server.start()
    assert "pg_dump" in str(caught.value.remedy)


def test_refuses_a_folder_that_another_host_may_be_using(cluster: Path) -> None:
    server = EmbeddedPostgres(cluster)
    server.start()
    server.stop()
    (cluster / "host").write_text("elsewhere\n")
    (server.data / "postmaster.pid").write_text("1\n")
    with pytest.raises(SetupError, match="'elsewhere'"):
        server.start()
    (server.data / "postmaster.pid").unlink()
    assert server.start() is True
    server.stop()


def test_says_when_the_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="too long"):
        EmbeddedPostgres(tmp_path / ("x" * 100)).start()


def test_an_unfinished_initdb_is_begun_anew(folder: Path) -> None:
    torn = folder / "data.new"
    torn.mkdir(parents=True)
    (torn / "PG_VERSION").write_text(f"{MAJOR}\n")
    assert EmbeddedPostgres(folder).start() is True
    assert not torn.exists()


def test_works_as_an_ordinary_user(folder: Path) -> None:
    home = folder.parent / "home"
    home.mkdir()
    program = (
        "import os; from celora.local.postgres import EmbeddedPostgres\n"
        "from models.settings import settings; assert os.geteuid() != 0\n"
        "server = EmbeddedPostgres(settings().embedded_postgres)\n"
        "assert server.start(); server.connect('celora', 'celora').close(); server.stop()\n"
        "assert server.running_pid() is None; print('done')"
    )
    command = as_ordinary_user([sys.executable, "-c", program], home)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CELORA_")}
    done = subprocess.run(
        command,
        env=environment | {"HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs under another user")
def test_programs_below_a_private_folder_are_copied_for_the_servers_user(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a checkout in /root, which nobody else may enter."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    package = binaries._wheel_folder()
    for name in (package.name, f"{package.name}.libs"):
        (private / name).symlink_to(package.parent / name)
    monkeypatch.setattr(binaries, "_wheel_folder", lambda: private / package.name)
    monkeypatch.setattr(binaries, "COPIES", folder / "programs")
    server = EmbeddedPostgres(folder / "server")
    assert server.start() is True
    assert answer(server, "SELECT 1") == 1
    pid = server.running_pid()
    assert pid is not None
    assert Path(psutil.Process(pid).exe()).is_relative_to(folder / "programs")
    end(pid, signal.SIGQUIT)
    assert len(list((folder / "programs").iterdir())) == 1
    assert binaries.runner().bin.is_relative_to(folder / "programs")

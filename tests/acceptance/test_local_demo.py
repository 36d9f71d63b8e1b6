"""`celora demo`: it learns, and it stops all that it started, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import celora
from celora.demo import _forget_deleted_home, run
from celora.local.postgres import EmbeddedPostgres
from models.errors import SetupError
from models.settings import Settings
from tests.environment import variables
from tests.stack import Stack


@pytest.fixture
def scene() -> Iterator[Stack]:
    # A short path: the folder of the database's socket must fit into a socket address.
    folder = Path(tempfile.mkdtemp(prefix="celora-demo-"))
    # What a user has set must not reach the demo.
    stack = Stack(folder, {"CELORA_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"})
    with variables(CELORA_HOME=str(folder / "home")):
        server = EmbeddedPostgres(Settings().embedded_postgres)
        yield stack
        stack.close()
        server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_it_leaves_nothing_behind(scene: Stack, number: signal.Signals) -> None:
    demo = scene.start("demo", "--home", str(scene.folder / "home"))
    scene.wait_until("the base is being made", lambda: "pre-training: " in demo.said(), seconds=180)
    processes = psutil.Process(demo.pid).children(recursive=True)
    assert EmbeddedPostgres(Settings().embedded_postgres).running_pid() is not None
    os.kill(demo.pid, number)
    assert demo.process.wait(90) == 130
    scene.running.remove(demo)
    assert "Traceback" not in demo.said()
    _, left = psutil.wait_procs(processes, timeout=5)
    assert left == []
    assert EmbeddedPostgres(Settings().embedded_postgres).running_pid() is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_and_is_quicker_the_second_time(scene: Stack) -> None:
    for again in (False, True):
        demo = scene.start("demo", "--home", str(scene.folder / "home"))
        assert demo.process.wait(850) == 0, demo.said()
        scene.running.remove(demo)
        said = demo.said()
        for part in ("exact match", "BLEU", "ROUGE-L", "adapter", "What to run next"):
            assert part in said, part
        assert ("made by an earlier demo" in said) == again
    assert EmbeddedPostgres(Settings().embedded_postgres).running_pid() is None


def test_from_a_wheel_it_says_where_the_data_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(celora, "__file__", str(tmp_path / "site-packages/celora/__init__.py"))
    with pytest.raises(SetupError, match="not part of the installed package") as caught:
        run(tmp_path / "home")
    assert "make demo" in str(caught.value.remedy)
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's database lies in the home itself")
def test_the_database_of_a_deleted_home_goes_too(scene: Stack) -> None:
    home = scene.folder / "home"
    server = EmbeddedPostgres(Settings().embedded_postgres)
    home.mkdir()
    server.folder.mkdir(parents=True)
    _forget_deleted_home(home)
    assert server.folder.exists()
    home.rmdir()
    _forget_deleted_home(home)
    assert not server.folder.exists()

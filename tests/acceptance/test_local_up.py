"""`celora up` on its embedded defaults: ready, in use, stopped, killed, healed; as root and as an
ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from celora.local.postgres import EmbeddedPostgres
from models.settings import Settings
from tests.environment import variables
from tests.ordinary_user import as_ordinary_user
from tests.stack import Running, Stack

UP = ("up", "--devices", "cpu:2")
SCRIPT = "scripted:?steps=5&step_seconds=0.01"
LONG_SCRIPT = "scripted:?steps=100000&step_seconds=0.01"


@pytest.fixture
def local() -> Iterator[Stack]:
    # A short path: the folder of the database's socket must fit into a socket address.
    folder = Path(tempfile.mkdtemp(prefix="celora-up-"))
    folder.chmod(0o755)
    environment = {"CELORA_HOME": str(folder / "home"), "CELORA_ALLOW_SCRIPTED": "true"}
    stack = Stack(folder, environment)
    with variables(**environment):
        server = EmbeddedPostgres(Settings().embedded_postgres)
        # Nothing here outlives the test, and syncing is most of the time it would take.
        server.folder.mkdir(parents=True)
        (server.folder / "local.conf").write_text("fsync = off\n")
        yield stack
        stack.close()
        server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)
    shutil.rmtree(folder)


def start(stack: Stack, *arguments: str) -> Running:
    up = stack.start(*(arguments or UP))
    stack.wait_until("celora up is ready", lambda: "\nready" in up.said(), seconds=120)
    return up


def submit(stack: Stack, base: str, *more: str) -> dict[str, Any]:
    done = stack.run("submit", "--base-model", base, "--dataset", "none", "--json", *more)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def read(stack: Stack, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(stack.run("job", job_id, "--json").stdout)
    return answer


def family(up: Running) -> list[psutil.Process]:
    return psutil.Process(up.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def find(up: Running, *words: str) -> set[int]:
    """Processes below `celora up` whose command line has all the words."""
    found = set()
    for process in family(up):
        with suppress(psutil.Error):  # it may leave while we look
            if set(words) <= set(process.cmdline()):
                found.add(process.pid)
    return found


def server() -> EmbeddedPostgres:
    return EmbeddedPostgres(Settings().embedded_postgres)


def test_a_life_with_a_stop_and_a_kill(local: Stack) -> None:
    """One story, because each start costs seconds: ready, in use, drained, killed, attached."""
    up = start(local)
    gpus = json.loads(local.run("gpus", "--json").stdout)
    assert [(gpu["index"], gpu["state"]) for gpu in gpus] == [(0, "free"), (1, "free")]

    second = local.run(*UP, check=False)
    assert second.returncode == 5
    assert f"runs already on this home (process {up.pid})" in second.stderr
    assert second.stdout == ""

    job = submit(local, LONG_SCRIPT)["id"]
    local.wait_until("it trains", lambda: read(local, job)["step"] > 0)
    processes = family(up)
    assert local.stop(up, seconds=60) == 0
    assert alive(processes) == []
    assert server().running_pid() is None

    up = start(local)
    local.wait_until("it trains again", lambda: read(local, job)["state"] == "running")
    attempts = read(local, job)["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["completed", "drained", None]
    assert attempts[-1]["start_step"] > 0

    processes, postgres = family(up), server().running_pid()
    assert postgres is not None
    local.kill(up)
    deadline = time.monotonic() + 60
    while alive(processes):
        assert time.monotonic() < deadline, [p.cmdline() for p in alive(processes)]
        time.sleep(0.05)
    assert server().running_pid() == postgres
    up = start(local)
    assert "was running, attached" in up.said()
    assert server().running_pid() == postgres
    local.wait_until("it trains once more", lambda: read(local, job)["state"] == "running")


def test_what_dies_is_started_again(local: Stack) -> None:
    up = start(local)
    for words in (("dispatcher",), ("--queues", "celora.cpu,celora.cpu.0.2,celery")):
        before = find(up, *words)
        assert before
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        local.wait_until(
            f"{words} runs again",
            partial(lambda words, before: find(up, *words) - before, words, before),
        )
    assert "dispatcher ended (signal SIGKILL); it starts again in 1 s" in up.said()
    assert "cpu-worker ended (signal SIGKILL); it starts again in 1 s" in up.said()
    assert submit(local, SCRIPT, "--wait")["state"] == "completed"


@pytest.mark.slow  # half a minute
def test_watch_survives_a_crash_of_the_database(local: Stack) -> None:
    start(local)
    job = submit(local, "scripted:?steps=400&step_seconds=0.02")["id"]
    watch = local.start("watch", job)
    local.wait_until("it trains", lambda: "train  step" in watch.said())
    pid = server().running_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    local.wait_until("the watch tells of it", lambda: "does not answer" in watch.said())
    assert server().start() is True
    assert watch.process.wait(60) == 0
    assert f"{job} is completed" in watch.said()
    local.running.remove(watch)


def test_a_device_that_is_not_there(local: Stack) -> None:
    done = local.run("up", "--devices", "cuda:7", check=False)
    assert done.returncode == 5
    assert "no CUDA device 7" in done.stderr


def test_up_works_as_an_ordinary_user(local: Stack) -> None:
    command = as_ordinary_user([sys.executable, "-m", "celora"], local.folder)
    up = local.start_program([*command, *UP], "up")
    local.wait_until("celora up is ready", lambda: "\nready" in up.said(), seconds=120)
    assert f"PostgreSQL   started: {local.folder / 'home' / 'postgres'}" in up.said()
    done = subprocess.run(
        [*command, "submit", "--base-model", SCRIPT, "--dataset", "none", "--wait"],
        env=os.environ | local.environment,
        cwd=local.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    processes = family(up)
    assert local.stop(up, seconds=60) == 0
    assert alive(processes) == []

"""The product's processes for a test: real ones, started by their commands, with logs in files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from gpu_worker import tether

T = TypeVar("T")

STOP_SECONDS = 30
_TAIL = 2_500  # characters of each log that a failure shows


@dataclass(frozen=True, slots=True)
class Running:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Stack:
    """Starts commands of Celora in one environment; ends them and all their children.

    `environment` is what makes it a stack of its own: database, broker, artifacts, home.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.running: list[Running] = []

    def start(self, *arguments: str, name: str | None = None, **extra: str) -> Running:
        """`celora ARGUMENTS` in the background; `extra` adds to its environment.

        It gets SIGTERM when the tests are killed, so that nothing of them stays behind.
        """
        command = tether.command("celora", *arguments, death_signal=signal.SIGTERM)
        return self.start_program(command, name or arguments[0], **extra)

    def start_program(self, command: list[str], name: str, **extra: str) -> Running:
        log = self.folder / f"{name}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | self.environment | extra,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the tests is not one at the stack
            )
        running = Running(name, process, log)
        self.running.append(running)
        return running

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`celora ARGUMENTS` to its end, with its output captured."""
        done = subprocess.run(
            [sys.executable, "-m", "celora", *arguments],
            env=os.environ | self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"celora {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def wait_until(self, what: str, condition: Callable[[], T | None], *, seconds: float = 60) -> T:
        """Poll `condition` until it gives something true, and return that.

        Fails with every log when the time is up, and at once when a process has left by itself.
        """
        deadline = time.monotonic() + seconds
        while True:
            result = condition()
            if result:
                return result
            gone = [r.name for r in self.running if r.process.poll() is not None]
            if gone:
                raise AssertionError(f"waited for: {what}; {gone} left\n{self.logs()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(f"--- {r.name} (pid {r.pid})\n{r.said()[-_TAIL:]}" for r in self.running)

    def stop(self, running: Running, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and the exit code. Fails (after a SIGKILL) when it does not leave in time."""
        self.running.remove(running)
        family = _family(running.pid)
        running.process.send_signal(signal.SIGTERM)
        try:
            return running.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{running.name} did not stop within {seconds:g} s\n{running.said()[-_TAIL:]}"
            ) from None
        finally:
            _kill(family)
            running.process.wait()

    def kill(self, running: Running) -> None:
        """SIGKILL the process alone; its children are left to the product (and to `close`)."""
        self.running.remove(running)
        running.process.kill()
        running.process.wait()

    def close(self, *, seconds: float = STOP_SECONDS) -> None:
        """End whatever still runs: asked all at once, and killed after `seconds`.

        Never fails: a test has had its say.
        """
        families = [_family(running.pid) for running in self.running]
        for running in self.running if seconds else ():
            running.process.terminate()
        psutil.wait_procs([family[-1] for family in families if family], timeout=seconds)
        for running, family in zip(self.running, families, strict=True):
            _kill(family)
            running.process.wait()
        self.running.clear()


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it, the children first. Empty where it is gone."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        if process.is_running():  # compares the start time: a reused pid is never hit
            process.kill()
    psutil.wait_procs(family, timeout=5)

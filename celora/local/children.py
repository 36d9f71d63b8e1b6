"""Celora's own processes as children: started, logged, started again when they die, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gpu_worker import tether

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
# A child that lived this long has got over its trouble: the pause begins anew.
SETTLED_SECONDS = 60.0
_LARGEST_LOG = 20 * 1024**2


@dataclass(slots=True)
class Child:
    """`celora NAME ARGUMENTS`, whose output goes to `log`."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    due: float = 0.0  # when to start it again


@dataclass(slots=True)
class Children:
    """Start and tend them from one thread that lives as long as they shall: they die with it.

    A killed owner's children get SIGTERM from the kernel, on which a worker drains.
    """

    logs: Path
    pass_fds: tuple[int, ...] = ()
    say: Callable[[str], None] = print
    children: list[Child] = field(default_factory=list)

    def add(self, name: str, *arguments: str) -> Child:
        self.logs.mkdir(parents=True, exist_ok=True)
        child = Child(name, arguments, self.logs / f"{name}.log")
        self.children.append(child)
        self._start(child)
        return child

    def tend(self) -> None:
        """Look after all of them once: a dead one is started again after a growing pause."""
        now = time.monotonic()
        for child in self.children:
            if child.process is not None and (code := child.process.poll()) is not None:
                if now - child.started > SETTLED_SECONDS:
                    child.pause = FIRST_PAUSE_SECONDS
                self.say(
                    f"{child.name} ended ({_ending(code)}); it starts again in {child.pause:g} s"
                    f"\n  {_last_error(child.log) or f'see {child.log}'}"
                )
                child.process = None
                child.due = now + child.pause
                child.pause = min(child.pause * 2, LONGEST_PAUSE_SECONDS)
            elif child.process is None and now >= child.due:
                self._start(child)

    def stop(
        self,
        names: Iterable[str],
        *,
        seconds: float,
        hurry: Callable[[], bool] = lambda: False,
    ) -> None:
        """SIGTERM; those that have not left after `seconds`, or on `hurry`, are killed."""
        wanted = set(names)
        stopping = [child for child in self.children if child.name in wanted]
        for child in stopping:
            self.children.remove(child)
        alive = [child.process for child in stopping if child.process is not None]
        for process in alive:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in alive):
            if hurry() or time.monotonic() > deadline:
                _kill([process for process in alive if process.poll() is None])
                return
            time.sleep(0.05)

    def _start(self, child: Child) -> None:
        if child.log.exists() and child.log.stat().st_size > _LARGEST_LOG:
            child.log.rename(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(
                tether.command("celora", child.name, *child.arguments, death_signal=signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                pass_fds=self.pass_fds,
                start_new_session=True,  # a Ctrl-C in the terminal is the owner's to pass on
            )
        child.started = time.monotonic()


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """With all below them: a worker's own children would outlive it."""
    family: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family += [parent, *parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    for process in processes:
        process.wait()


def _last_error(log: Path) -> str:
    """The last thing it told as an error, as celora/cli/failures.py writes it; else nothing."""
    _, found, error = log.read_text(errors="replace")[-4_000:].rpartition("\nerror: ")
    return f"{error.strip()}\n  ({log})" if found else ""


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

"""`celora gpu-worker`: one pinned Celery worker for each device, started again when it dies.

The workers are tethered: when this process is killed, the kernel sends them SIGTERM and they drain.
Each runs in a session of its own, so that a Ctrl-C at the terminal reaches this process alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from gpu_worker import tether
from gpu_worker.devices import DEVICE_VARIABLE, Device, discover
from models.errors import CeloraError, SetupError
from models.settings import settings

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
# A worker that lived this long has got over its trouble: the pause begins anew.
SETTLED_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_LEAVE_SECONDS = 20.0  # for Celery's own good-byes, beyond the trainer's grace


@dataclass
class Worker:
    """The Celery worker of one device."""

    device: Device
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    due: float = 0.0
    refused: bool = False  # it said why; a new start would end the same way

    @property
    def name(self) -> str:
        return f"gpu{self.device.index}"

    def start(self) -> None:
        host = settings().resolved_host
        self.process = subprocess.Popen(
            tether.command(
                *("celery", "--app", "tasks.app", "worker", "--loglevel", "INFO"),
                *("--hostname", f"{self.name}@{host}"),
                *("--queues", f"celora.gpu.{host}.{self.device.index}"),
                *("--pool", "prefork", "--concurrency", "1", "--prefetch-multiplier", "1"),
                # Workers tell each other nothing: the rows in Postgres do.
                *("--without-gossip", "--without-mingle"),
                death_signal=signal.SIGTERM,
            ),
            stdin=subprocess.DEVNULL,
            env=os.environ
            | self.device.environment()
            | {DEVICE_VARIABLE: self.device.encode(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self.started = time.monotonic()
        say(f"{self.name}: {self.device.model} ({self.device.uuid}), pid {self.process.pid}")

    def tend(self) -> None:
        """Look once: start it when it is due, note it when it has died."""
        now = time.monotonic()
        if self.process is None:
            if not self.refused and now >= self.due:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.process = None
        if code == SetupError.exit_code:
            self.refused = True
            say(f"{self.name}: refused to start; its message is above")
            return
        if now - self.started > SETTLED_SECONDS:
            self.pause = FIRST_PAUSE_SECONDS
        self.due, self.pause = now + self.pause, min(self.pause * 2, LONGEST_PAUSE_SECONDS)
        say(f"{self.name}: ended ({_ending(code)}); it starts again in {self.due - now:g} s")


def main(wanted: str) -> None:
    """Serve the devices that `wanted` names (see `devices.discover`) until SIGTERM or SIGINT.

    Raises SetupError when there is no such device, or when no worker could start.
    """
    workers = [Worker(device) for device in discover(wanted)]
    stops: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if settings().at_home("work").is_dir():
        threading.Thread(target=_remove_leftovers, name="leftovers", daemon=True).start()
    while not stops:
        for worker in workers:
            worker.tend()
        if all(worker.refused for worker in workers):
            raise SetupError(
                "no worker could start on these devices",
                where=wanted,
                remedy="the reasons are above",
            )
        time.sleep(_LOOK_SECONDS)
    _stop([worker.process for worker in workers if worker.process is not None], stops)


def _remove_leftovers() -> None:
    """In a thread: no worker waits for the database that tells what may go."""
    from gpu_worker import leftovers

    try:
        for path in leftovers.remove():
            say(f"{path}: left by an attempt that is over; deleted")
    except CeloraError as error:
        say(f"leftovers in {settings().at_home('work')} stay until the next start: {error.what}")


def _stop(processes: list[subprocess.Popen[bytes]], stops: list[int]) -> None:
    """Drain: SIGTERM, and SIGKILL after the trainers' grace or on a second signal."""
    say(f"stopping; jobs have {settings().stop_grace_seconds:g} s to write a checkpoint")
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + settings().stop_grace_seconds + _LEAVE_SECONDS
    asked = len(stops)
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or len(stops) > asked:
            say("not all workers left in time: killed")
            _kill([process for process in processes if process.poll() is None])
            return
        time.sleep(_LOOK_SECONDS)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """The workers; the kernel ends their pool children, and those children's trainers."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
            process.wait()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def say(line: str) -> None:
    with suppress(OSError):  # a log on a full disk must not end what is logged
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

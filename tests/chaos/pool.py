"""Celora's processes for one run, started and started again as a service manager would.

Two hosts by name, each with several CPU slots, two dispatchers and a cpu worker, all in one folder.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpu_worker.processes import holders
from tests.stack import Running, Stack

HOSTS = ("chaos-a", "chaos-b")

# Time-outs are compressed by configuration alone; losses are many here, and are not to fail a job.
SETTINGS = {
    "CELORA_LEASE_SECONDS": "6",
    "CELORA_RENEW_SECONDS": "1",
    "CELORA_CONTROL_SECONDS": "0.3",
    "CELORA_KILL_MARGIN_SECONDS": "2",
    "CELORA_STOP_GRACE_SECONDS": "10",
    "CELORA_CANCEL_GRACE_SECONDS": "2",
    "CELORA_POLL_SECONDS": "1",
    "CELORA_RESEND_SECONDS": "4",
    "CELORA_GPU_HEARTBEAT_SECONDS": "1",
    "CELORA_GPU_STALE_SECONDS": "8",
    "CELORA_MAX_LOSSES": "100",
    "CELORA_ALLOW_SCRIPTED": "true",
    # Small models on few cores: threads would only fight each other.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class Service:
    name: str
    arguments: tuple[str, ...]
    host: str
    running: Running | None = None


class Pool:
    def __init__(self, folder: Path, environment: dict[str, str], *, slots: int) -> None:
        self.stack = Stack(folder, environment | SETTINGS)
        self.locks = Path(environment["CELORA_HOME"]) / "locks"
        self.services = [
            *(Service("dispatcher", ("dispatcher",), host) for host in HOSTS),
            Service("cpu-worker", ("cpu-worker", "--concurrency", "2"), HOSTS[0]),
            *(Service("gpu-worker", ("gpu-worker", "--devices", f"cpu:{slots}"), h) for h in HOSTS),
        ]
        self.restarts = 0
        self._lock = threading.Lock()
        self._witness: Running | None = None

    def start(self, lives: Path) -> None:
        self.locks.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.chaos.witness", str(self.locks), str(lives)]
        root = str(Path(__file__).parents[2])
        self._witness = self.stack.start_program(command, "witness", PYTHONPATH=root)
        self.tend()

    def tend(self) -> None:
        """Start what does not run."""
        with self._lock:
            for service in self.services:
                if service.running is not None and service.running.process.poll() is None:
                    continue
                if service.running is not None:
                    self.restarts += 1
                    with suppress(ValueError):
                        self.stack.running.remove(service.running)
                    service.running = None
                if service.name == "gpu-worker" and self._served(service.host):
                    continue
                service.running = self.stack.start(
                    *service.arguments, CELORA_HOST=service.host, name=service.name
                )

    def _served(self, host: str) -> bool:
        """Whether workers that a killed launcher left are still leaving."""
        return any(holders(path) for path in self.locks.glob(f"cpu-{host}-*.worker"))

    # Who is who

    def pids(self, name: str) -> list[psutil.Process]:
        """The main process of each service of that name that runs."""
        found = [one.running for one in self.services if one.name == name and one.running]
        return [psutil.Process(one.pid) for one in found if one.process.poll() is None]

    def workers(self) -> list[psutil.Process]:
        """The main process of each GPU's Celery worker."""
        return [child for launcher in self.pids("gpu-worker") for child in _children(launcher)]

    def pool_children(self) -> list[psutil.Process]:
        return [child for worker in self.workers() for child in _children(worker)]

    def working(self) -> list[psutil.Process]:
        """Those workers that have a trainer."""
        return [
            worker
            for worker in self.workers()
            if any(_children(child) for child in _children(worker))
        ]

    def trainers(self) -> list[psutil.Process]:
        return [child for one in self.pool_children() for child in _children(one)]

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.stack.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End everything at once, the witness last."""
        witness, self._witness = self._witness, None
        if witness is not None:
            self.stack.running.remove(witness)
        _end_processes_in(self.stack.folder, but=witness.pid if witness is not None else 0)
        self.stack.close()
        if witness is not None:
            witness.process.terminate()
            witness.process.wait(20)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _end_processes_in(folder: Path, *, but: int) -> None:
    """What was cut off from its parent: it works inside the run's own folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            inside = Path(process.cwd()).is_relative_to(folder)
            if inside and process.pid not in {os.getpid(), but}:
                process.kill()
                process.wait(5)

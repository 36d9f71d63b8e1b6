"""The main process of a worker: what it holds for its children, and what only it learns."""

from __future__ import annotations

import logging
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from gpu_worker import locks
from gpu_worker.devices import Device
from gpu_worker.lease import check_settings
from models.errors import SetupError
from models.states import Stage

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_LOCK_PATIENCE_SECONDS = 3.0
_LOOK_SECONDS = 0.05


class MainProcess:
    """Made before the fork of the pool; a child finds here what it inherited."""

    def __init__(self, worker: str, device: Device | None) -> None:
        self.worker = worker
        self.device = device
        self.pid = os.getpid()
        self._lock_fd: int | None = None
        self._drain_reading, self._drain_writing = os.pipe()
        # Shared with every child: 1 while a cancel is still to be written. A child that replaces a
        # terminated one must not end the attempt as lost, and let it be placed again, before.
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._pending = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Leaves the process where it cannot work: wrong settings, a device in other hands."""
        try:
            check_settings()
            self._take_device()
        except SetupError as error:
            sys.stderr.write(f"{error}\n")
            raise SystemExit(error.exit_code) from None

    def _take_device(self) -> None:
        """Keep the device's worker lock for good."""
        if self.device is None:
            return
        path = locks.worker_lock(self.device)
        # A main process that was killed leaves it to its pool child, which dies a moment later; and
        # a refusal is for good.
        patience = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while (descriptor := locks.take(path)) is None and time.monotonic() < patience:
            time.sleep(_LOOK_SECONDS)
        self._lock_fd = descriptor
        if descriptor is None:
            holder = locks.noted(path).strip() or "another process"
            raise SetupError(
                f"{self.device.uuid} is served already by {holder}",
                where=self.worker,
                remedy="stop that worker first, or name other devices",
            )
        locks.note(descriptor, f"{self.worker} (pid {self.pid})\n")

    # Drain: main → children

    def drain_children(self) -> None:
        """Fit for a signal handler: one write to a pipe, which each child's thread waits for."""
        os.write(self._drain_writing, b"drain\n")

    def listen_for_drain(self, drain: Callable[[], None]) -> None:
        """In a child: call `drain` when the main process is to stop."""

        def listen() -> None:
            # Looked at, not read: every child of the pool has to see it.
            select.select([self._drain_reading], [], [])
            drain()

        threading.Thread(target=listen, name="drain", daemon=True).start()

    # What only the main process learns

    def cancel(self, job_id: str, fence: int, stage: Stage) -> None:
        """Have the cancel of a job written whose task was terminated; new children wait for it."""
        with self._lock:
            self._pending += 1
            self._shared[0] = 1

        def write() -> None:
            while not _aside("cancel", job_id, str(fence), stage.value):
                time.sleep(_RETRY_SECONDS)
            with self._lock:
                self._pending -= 1
                self._shared[0] = 1 if self._pending else 0

        threading.Thread(target=write, name="cancel", daemon=True).start()

    def cancels_written(self) -> bool:
        """In any process of the worker: no cancel waits to be written."""
        return self._shared[0] == 0

    def count(self, counter: str, what: str) -> None:
        _log.warning("%s", what)
        threading.Thread(target=_aside, args=("count", counter), daemon=True).start()


def _aside(*arguments: str) -> bool:
    """Have something written; False when the writer itself was ended. It outlives this process."""
    done = subprocess.run(
        [sys.executable, "-m", "tasks.aside", *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    return done.returncode == 0

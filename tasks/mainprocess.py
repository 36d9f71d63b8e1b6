"""The main process of a worker: what it holds for its children, and what it writes by itself."""

from __future__ import annotations

import logging
import mmap
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from gpu_worker import locks
from gpu_worker.devices import Device
from gpu_worker.session import count
from models.errors import CeloraError, SetupError, UnavailableError
from models.queries import attempts, jobs
from models.session import transaction
from models.states import Outcome, Stage, StopReason

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


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

    def take_device(self) -> None:
        """Keep the device's worker lock for good. Leaves the process when another one has it."""
        if self.device is None:
            return
        path = locks.worker_lock(self.device)
        self._lock_fd = locks.take(path)
        if self._lock_fd is None:
            holder = locks.noted(path).strip() or "another process"
            error = SetupError(
                f"{self.device.uuid} is served already by {holder}",
                where=self.worker,
                remedy="stop that worker first, or name other devices",
            )
            sys.stderr.write(f"{error}\n")
            raise SystemExit(error.exit_code)
        locks.note(self._lock_fd, f"{self.worker} (pid {self.pid})\n")

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
        """Write the cancel of a job whose task was terminated; new children wait until it stands.

        An attempt on a device ends when the new child has made sure that no trainer lives.
        """
        with self._lock:
            self._pending += 1
            self._shared[0] = 1

        def write() -> None:
            with transaction() as session:
                jobs.request_stop(session, job_id, StopReason.CANCEL)
                if stage is Stage.PREPROCESS:
                    attempts.end_attempt(
                        session, job_id, fence, Outcome.CANCELLED, reason="terminated"
                    )
            _log.info("job %s: cancelled, as its task was terminated", job_id)

        def insist() -> None:
            try:
                _insist(write)
            finally:
                with self._lock:
                    self._pending -= 1
                    self._shared[0] = 1 if self._pending else 0

        threading.Thread(target=insist, name="cancel", daemon=True).start()

    def cancels_written(self) -> bool:
        """In any process of the worker: no cancel waits to be written."""
        return self._shared[0] == 0

    def count(self, counter: str, what: str) -> None:
        _log.warning("%s", what)
        threading.Thread(target=count, args=(counter,), name="count", daemon=True).start()


def _insist(write: Callable[[], None]) -> None:
    """Until it is written, or can never be."""
    while True:
        try:
            write()
        except UnavailableError as error:
            _log.warning("a cancel waits: %s", error.what)
            time.sleep(_RETRY_SECONDS)
        except CeloraError as error:
            _log.warning("a cancel was not needed: %s", error)
            return
        else:
            return

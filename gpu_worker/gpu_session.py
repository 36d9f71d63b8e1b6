"""The pool child of one device: its lock, its row in `gpus`, its heartbeat, its trainer.

While another process of ours lives on the device, nothing is started: the lock is inherited by
every trainer. What the heartbeat reports is what this process knows by itself: idle, busy, held by
a foreign process, or unknown.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from sqlalchemy.orm import Session

from gpu_worker import locks, processes, trackers
from gpu_worker.devices import Device, boot_id
from gpu_worker.held import foreign_use
from gpu_worker.samples import Sampler
from gpu_worker.session import WorkerSession
from gpu_worker.trackers import Trackers
from gpu_worker.trainer_process import TrainerProcess
from models.abilities import ABILITIES
from models.errors import CeloraError, SetupError, UnavailableError
from models.queries import attempts, gpus, history, samples
from models.queries.attempts import Claim
from models.session import transaction
from models.settings import settings
from models.states import Stage

_log = logging.getLogger(__name__)

_LOCK_PATIENCE_SECONDS = 2.0  # a predecessor's trainer dies with it, but not in no time
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 0.05
_READY_SECONDS = 30.0
_LEAVE_SECONDS = 3.0


@dataclass(frozen=True)
class Report:
    """What the heartbeat says."""

    reported: str
    reason: str | None = None


@dataclass(frozen=True)
class _Row:
    """The device's row, as far as a heartbeat changes it."""

    report: Report
    loaded_base: str | None
    trainer_pid: int | None


class TrainerStuckError(SetupError):
    """A trainer outlives its SIGKILL, in a driver call that never returns."""


class GpuSession(WorkerSession):
    def __init__(self, worker: str, device: Device, queue: str) -> None:
        super().__init__(worker)
        self.device = device
        self.queue = queue
        self.gpu_id: int | None = None
        self.trainer: TrainerProcess | None = None
        self.loaded_base: str | None = None
        self._lock_fd: int | None = None
        self._registered = threading.Event()
        self._leaving = threading.Event()
        self._trainer_lock = threading.RLock()
        self._tracked: tuple[int, Trackers] | None = None  # attempt and its trackers
        self._doubt: str | None = None  # why the device is not known to be free
        self._idle_since = time.monotonic()
        self._beat = threading.Condition()
        self._news = False
        self._written: _Row | None = None
        self._due = 0.0  # when a heartbeat is due though nothing has changed
        self._thread: threading.Thread | None = None

    def start(self, may_begin: Callable[[], bool] = lambda: True) -> None:
        """Take the device and report it from now on, in a thread: the pool must not wait for it.

        Nothing is done until `may_begin`.
        """
        self._thread = threading.Thread(
            target=self._serve, args=(may_begin,), name="gpu", daemon=True
        )
        self._thread.start()
        threading.Thread(target=self._sample, name="samples", daemon=True).start()

    def claim(self, job_id: str, fence: int, stage: Stage) -> Claim | None:
        if not self._registered.wait(_READY_SECONDS):
            return None  # the device is not ours yet; the ticket is sent again
        # Looked at now: the row may be of before another process came, while a job of ours ran.
        if self.lease is None and self._foreign_use() is not None:
            self.beat()
            return None  # the dispatcher takes the placement back as soon as it reads that
        try:
            return super().claim(job_id, fence, stage)
        finally:
            self.beat()  # only if the row says otherwise: a stale ticket, or a lost answer

    def release(self) -> None:
        super().release()
        self._idle_since = time.monotonic()
        self.beat()  # only if the row says otherwise: see `_serve`

    def drain(self) -> None:
        super().drain()
        self.beat()

    def beat(self) -> None:
        """Report soon: something has changed."""
        with self._beat:
            self._news = True
            self._beat.notify_all()

    def report_taking(self, session: Session) -> None:
        if self.lease is None:
            self._write(session, Report("busy"))

    def report(self, session: Session) -> None:
        """Say that the device is free, in the transaction that ends the attempt."""
        free = self._report(attempt_ends=True)
        self._write(session, free)

    def trackers_for(self, claim: Claim) -> Trackers:
        """The attempt's trackers: one run there for all its stages."""
        if self._tracked is None or self._tracked[0] != claim.attempt_id:
            opened = Trackers(lambda what: _warn_of_tracker(claim.job_id, what))
            opened.start(claim.spec, claim.job_id)
            self._tracked = (claim.attempt_id, opened)
        return self._tracked[1]

    # The trainer

    def trainer_for(self, module: str) -> TrainerProcess:
        """The living trainer if it plays `module`, else a new one. Main thread only.

        Raises TrainerStuckError when the one before does not die.
        """
        with self._trainer_lock:
            current = self.trainer
            if current is not None and current.alive and current.module == module:
                return current
            if current is not None:
                self.end_trainer()
            self.trainer = TrainerProcess(module, self.device, lock_fd=self._lock_fd)
            self.beat()
            return self.trainer

    def end_trainer(self, *, gently: bool = False) -> None:
        """Let it leave by itself, or kill it; return when nothing of it lives.

        Raises TrainerStuckError when something does: the device is in doubt until it is gone.
        """
        with self._trainer_lock:
            current, self.trainer, self.loaded_base = self.trainer, None, None
        if current is None:
            return
        if gently:
            current.leave(_LEAVE_SECONDS)
        if not current.kill():
            self._doubt = f"the trainer (pid {current.pid}) does not die"
            self.beat()
            raise TrainerStuckError(
                self._doubt, where=self.device.uuid, remedy="look for it in `ps`; reset the device"
            )
        self.beat()

    def leave(self, *, in_order: bool) -> None:
        """The child ends. In good order the trainer may leave by itself, and the row says so."""
        if in_order:
            self.drain()  # an attempt between two stages is put back into the queue
            patience = time.monotonic() + _LEAVE_SECONDS
            while self.lease is not None and time.monotonic() < patience:
                time.sleep(_LOOK_SECONDS)
        self._leaving.set()
        self.beat()
        if self._thread is not None:
            self._thread.join(_LEAVE_SECONDS)  # a heartbeat after `mark_gone` would take it back
        if in_order:
            trackers.wait(_LEAVE_SECONDS)
        try:
            self.end_trainer(gently=in_order and self.lease is None)
            if in_order and self.gpu_id is not None:
                with transaction() as session:
                    gpus.mark_gone(session, self.gpu_id, self.id)
        except CeloraError as error:
            _log.warning("%s: %s", self.device.uuid, error)

    def _on_lost(self, why: str) -> None:
        try:
            self.end_trainer()
        except TrainerStuckError as error:
            _log.error("%s", error)
        super()._on_lost(why)

    # The row

    def _serve(self, may_begin: Callable[[], bool]) -> None:
        while not may_begin():
            time.sleep(_LOOK_SECONDS)
        self._take_lock()
        while not self._leaving.is_set():
            try:
                self._register()
                break
            except UnavailableError as error:
                _log.warning("the device is not registered yet: %s", error.what)
                self._leaving.wait(_RETRY_SECONDS)
        while not self._leaving.is_set():
            try:
                self._send_report()
                pause = self._due - time.monotonic()
            except UnavailableError as error:
                _log.warning("no heartbeat: %s", error.what)
                pause = min(settings().gpu_heartbeat_seconds, _RETRY_SECONDS)
            except Exception:  # noqa: BLE001 (a device whose heartbeat ends is lost to the pool)
                _log.exception("no heartbeat")
                pause = settings().gpu_heartbeat_seconds
            with self._beat:
                if not self._news:
                    self._beat.wait(max(0.0, pause))
                self._news = False
            self._end_idle_trainer()

    def _take_lock(self) -> None:
        """Wait for the device's trainer lock; end what an earlier child of this worker left.

        The worker's main process holds the worker's lock, so whoever holds this one is a leftover.
        """
        path = locks.trainer_lock(self.device)
        patience = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while not self._leaving.is_set():
            self._lock_fd = locks.take(path)
            if self._lock_fd is not None:
                locks.note(self._lock_fd, f"{self.worker} pid {os.getpid()}\n")
                return
            if time.monotonic() > patience:
                left = processes.holders(path)
                _log.warning("%s is still used by pid %s: killed", self.device.uuid, left)
                processes.end_holders(path, seconds=_LOCK_PATIENCE_SECONDS)
            self._leaving.wait(_LOOK_SECONDS)

    def _register(self) -> None:
        with transaction() as session:
            gpu_id = self._take_row(session)
            ended = attempts.end_session_attempts(session, gpu_id, self.id)
        for job_id in ended:
            _log.warning("job %s: its attempt on %s was lost", job_id, self.device.uuid)
        self.gpu_id = gpu_id
        self._registered.set()

    def _take_row(self, session: Session) -> int:
        return gpus.register_gpu(
            session,
            host=settings().resolved_host,
            index=self.device.index,
            queue=self.queue,
            **self._facts(),
        )

    def _facts(self) -> dict[str, Any]:
        """What the row tells of the device and its worker."""
        return {
            "uuid": self.device.uuid,
            "kind": self.device.kind,
            "model": self.device.model,
            "memory_bytes": self.device.memory_bytes,
            "worker": self.worker,
            "worker_session": self.id,
            "boot_id": boot_id(),
            "versions": _versions(),
        }

    def _send_report(self) -> None:
        """Write what the row does not say yet, or the heartbeat that is due."""
        report = self._report()
        if self._row(report) == self._written and time.monotonic() < self._due:
            return  # a write now would only lock the row under a dispatcher that looks for it
        with transaction() as session:
            ours = self._write(session, report)
        self._due = time.monotonic() + settings().gpu_heartbeat_seconds
        if not ours:
            _log.error(
                "%s: another worker reports this device (same CELORA_HOST?); no job is taken here",
                self.device.uuid,
            )

    def _write(self, session: Session, report: Report) -> bool:
        if self.gpu_id is None:
            return True
        row = self._written = self._row(report)
        return gpus.heartbeat(
            session,
            self.gpu_id,
            self.id,
            reported=row.report.reported,
            reason=row.report.reason,
            loaded_base=row.loaded_base,
            trainer_pid=row.trainer_pid,
        )

    def _row(self, report: Report) -> _Row:
        trainer = self.trainer
        pid = trainer.pid if trainer is not None and trainer.alive else None
        return _Row(report, self.loaded_base, pid)

    def _report(self, *, attempt_ends: bool = False) -> Report:
        if self.draining.is_set():
            return Report("unknown", "its worker is stopping")
        if self._doubt is not None:
            if processes.holders(locks.trainer_lock(self.device)):
                return Report("unknown", self._doubt)
            self._doubt = None
        if attempt_ends:
            return Report("idle")
        if self.lease is not None:
            return Report("busy")
        foreign = self._foreign_use()
        return Report("idle") if foreign is None else Report("held", foreign)

    def _foreign_use(self) -> str | None:
        return foreign_use(self.device, self._own_pids())

    def _own_pids(self) -> list[int]:
        """Processes of our trainer, where they matter: to look for them costs milliseconds."""
        trainer = self.trainer
        if self.device.kind != "cuda" or trainer is None or not trainer.alive:
            return []
        return processes.session_members(trainer.pid)

    def _sample(self) -> None:
        """Record what the device is doing; a sample that cannot be written is not worth a retry."""
        sampler = Sampler(self.device)
        while not self._leaving.wait(settings().sample_seconds):
            if self.gpu_id is None:
                continue
            trainer = self.trainer
            try:
                pid = trainer.pid if trainer is not None and trainer.alive else None
                taken = sampler.take(pid)
                with transaction() as session:
                    samples.record_sample(session, self.gpu_id, **asdict(taken))
            except UnavailableError as error:
                _log.debug("no sample: %s", error.what)
            except Exception:  # noqa: BLE001 (a driver that fails must not end the sampling)
                _log.exception("no sample")

    def _end_idle_trainer(self) -> None:
        with self._trainer_lock:
            idle = time.monotonic() - self._idle_since
            if self.trainer is None or self.lease is not None:
                return
            if self.trainer.alive and idle < settings().trainer_idle_seconds:
                return
            try:
                self.end_trainer(gently=True)
            except TrainerStuckError as error:
                _log.error("%s", error)


def _warn_of_tracker(job_id: str, what: str) -> None:
    try:
        with transaction() as session:
            history.add_event(session, job_id, "tracker", what, level="warn")
    except UnavailableError as error:
        _log.warning("job %s: %s (%s)", job_id, what, error.what)


def _versions() -> dict[str, Any]:
    """Of what decides how a job is trained, and what more this worker can do; nothing is imported
    for it."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "abilities": ABILITIES}
    for name in ("celora", "torch", "transformers", "trl", "peft", "bitsandbytes"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

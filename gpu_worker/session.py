"""What a pool child is to the database: a worker's name, a session id, and the lease it holds.

A session lives as long as the child process. The cpu worker's sessions prepare data; gpu_session.py
adds a device and a trainer.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from gpu_worker.lease import Lease, LeaseLostError, now
from models.errors import StaleFenceError, UnavailableError
from models.queries import attempts, history
from models.queries.attempts import Claim
from models.session import transaction
from models.settings import settings
from models.states import STOPPED_AS, Stage, StopReason

_log = logging.getLogger(__name__)

DROPPED_TICKETS = "tickets_dropped"  # counter: late, repeated and reordered tickets


@dataclass(frozen=True)
class LeaseLost:
    why: str


Listener = Callable[[StopReason | LeaseLost], None]


class WorkerSession:
    def __init__(self, worker: str) -> None:
        self.id = uuid.uuid4().hex
        self.worker = worker
        self.draining = threading.Event()
        self.lease: Lease | None = None
        self._held: tuple[str, int] | None = None  # job and fence of the lease
        self._listener: Listener | None = None
        self._lock = threading.RLock()

    def claim(self, job_id: str, fence: int, stage: Stage) -> Claim | None:
        """Take a stage, and hold the attempt's lease from now on. None: drop the ticket.

        Raises UnavailableError; whether the claim was written is unknown then. If it was, its
        lease runs out; if not, the ticket is sent again.
        """
        if self.draining.is_set():
            self._end_between_stages(StopReason.DRAIN)
            return None
        sent_at = now()
        with transaction() as session:
            self.report_taking(session)
            claim = attempts.claim(
                session,
                job_id,
                fence,
                stage,
                worker=self.worker,
                worker_session=self.id,
                lease_seconds=settings().lease_seconds,
            )
            if claim is None:
                history.count(session, DROPPED_TICKETS)
        if claim is None:
            _log.info("dropped a ticket: %s fence %s %s", job_id, fence, stage)
            if self._held == (job_id, fence) and self._listener is None:
                self.release()  # a stop between two stages ended it in the claim
            return None
        if self.lease is None or self.lease.attempt_id != claim.attempt_id or self.lease.lost:
            self._hold(claim, sent_at)
        return claim

    def _hold(self, claim: Claim, sent_at: float) -> None:
        if self.lease is not None:
            self.lease.close()
        self._held = (claim.job_id, claim.fence)
        self.lease = Lease(
            claim.attempt_id, claim_sent_at=sent_at, on_stop=self._on_stop, on_lost=self._on_lost
        )

    def attach(self, listener: Listener) -> None:
        """Send stop requests and the loss of the lease to `listener`, one asked before included."""
        with self._lock:
            self._listener = listener
            lease = self.lease
            if lease is not None and lease.lost:
                listener(LeaseLost("it was lost before the stage began"))
            elif lease is not None and lease.stop is not None:
                listener(lease.stop)

    def detach(self) -> None:
        """The stage is done and another follows on this lease: a stop ends the attempt until then.

        A stop that came as the stage ended was no longer heeded by it: it is heeded here.
        """
        with self._lock:
            self._listener = None
            stop = self.lease.stop if self.lease is not None else None
        if stop is not None:
            self._end_between_stages(stop)

    def release(self) -> None:
        """The attempt is over: let go of its lease."""
        with self._lock:
            self._listener = None
            lease, self.lease, self._held = self.lease, None, None
        if lease is not None:
            lease.close()

    def drain(self) -> None:
        """The worker is to leave: take nothing more, stop what runs with a checkpoint."""
        self.draining.set()
        lease = self.lease
        if lease is not None:
            lease.ask(StopReason.DRAIN)

    def report_taking(self, session: Session) -> None:
        """Say in the transaction of a claim that its device is busy. Here: no device."""

    def report(self, session: Session) -> None:
        """Say in the transaction that ends an attempt that its device is free. Here: no device."""

    def _on_stop(self, reason: StopReason) -> None:
        with self._lock:
            listener = self._listener
            if listener is not None:
                listener(reason)
                return
        self._end_between_stages(reason)

    def _on_lost(self, why: str) -> None:
        with self._lock:
            listener = self._listener
            if listener is None:
                self.release()
            else:
                listener(LeaseLost(why))

    def _end_between_stages(self, reason: StopReason) -> None:
        """No stage runs, and its successor's ticket is on the way: nothing is left to stop."""
        with self._lock:
            lease, held, busy = self.lease, self._held, self._listener is not None
        if lease is None or held is None or busy:
            return

        def end(session: Session) -> None:
            self.report(session)
            attempts.end_attempt(
                session, *held, STOPPED_AS[reason], reason="stopped between two stages"
            )

        try:
            lease.conclude(end)
        except (StaleFenceError, LeaseLostError):
            _log.info("job %s: its attempt was over before it was stopped", held[0])
        self.release()


def count(name: str) -> None:
    """Count an oddity, if the database answers: it is not worth more."""
    try:
        with transaction() as session:
            history.count(session, name)
    except UnavailableError as error:
        _log.warning("%s was not counted: %s", name, error.what)

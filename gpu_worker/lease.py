"""The lease of an attempt: kept while all goes well, and a deadline that needs nobody's answer.

Two threads, outside any task body. The keeper renews the lease and looks for stop requests, on the
database. The watchdog never touches the database: when the deadline passes, it calls `on_lost`,
which kills the trainer, however long the keeper still waits for an answer.

The deadline is CLOCK_BOOTTIME, read *before* the last renewal that succeeded was sent, plus the
lease, less a margin for killing. The database counts the lease from when it got the renewal, which
is later: so no trainer outlives its lease. Unlike CLOCK_MONOTONIC this clock goes on in suspend.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session

from models.errors import CeloraError, SetupError, UnavailableError
from models.queries import attempts
from models.session import transaction
from models.settings import settings
from models.states import StopReason, is_stronger

T = TypeVar("T")

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class LeaseLostError(CeloraError):
    """The attempt is no longer ours: its trainer is dead, and nothing more may be written."""

    code = "lease_lost"


def now() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def check_settings() -> None:
    """Raises SetupError when no lease could be kept with these settings."""
    values = settings()
    if values.lease_seconds <= values.renew_seconds + values.kill_margin_seconds:
        raise SetupError(
            f"a lease of {values.lease_seconds:g} s is over before it is renewed "
            f"(every {values.renew_seconds:g} s) and a trainer killed "
            f"({values.kill_margin_seconds:g} s)",
            where="CELORA_LEASE_SECONDS",
            remedy="make it longer than CELORA_RENEW_SECONDS + CELORA_KILL_MARGIN_SECONDS",
        )


class Lease:
    """Held from the claim until `close`; spans the stages of one attempt.

    `on_stop(reason)` is called once per reason, in the keeper's thread or in that of `ask`;
    `on_lost(why)` once, in the watchdog's or the keeper's thread. Neither after `close`.
    """

    def __init__(
        self,
        attempt_id: int,
        *,
        claim_sent_at: float,
        on_stop: Callable[[StopReason], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.attempt_id = attempt_id
        self.claimed_at = claim_sent_at
        self.stop: StopReason | None = None
        self._on_stop, self._on_lost = on_stop, on_lost
        self._lock = threading.Lock()
        self._wake = threading.Condition()
        self._closed = threading.Event()
        self._lost = threading.Event()
        self._concluding = threading.Event()
        self._renewed_at = claim_sent_at
        for job in (self._keep, self._watch):
            name = f"lease{job.__name__}-{attempt_id}"
            threading.Thread(target=job, name=name, daemon=True).start()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    @property
    def deadline(self) -> float:
        """When the trainer has to be dead, on `now()`'s clock."""
        return self._renewed_at + settings().lease_seconds - settings().kill_margin_seconds

    @property
    def held_seconds(self) -> float:
        return now() - self.claimed_at

    def over(self, seconds: float) -> bool:
        """Wait so long, or until nobody needs the attempt's work any more: True then."""
        return self._lost.wait(seconds) or self._closed.is_set()

    def ask(self, reason: StopReason) -> None:
        """Ask the attempt to stop, as a stop request on its row does. A weaker reason changes
        nothing."""
        with self._lock:
            if self._closed.is_set() or self.lost:
                return
            if not is_stronger(reason, self.stop):
                return
            self.stop = reason
        self._on_stop(reason)

    def insist(self, write: Callable[[Session], T]) -> T:
        """Run one transaction until it commits, as long as the lease lasts.

        Raises LeaseLostError, and whatever `write` raises but UnavailableError. A commit whose
        answer was lost is tried again, and finds its work done: StaleFenceError or StateError.
        """
        while not self.lost:
            try:
                with transaction() as session:
                    return write(session)
            except UnavailableError as error:
                _log.warning("attempt %s: %s; trying again", self.attempt_id, error.what)
                self._lost.wait(_RETRY_SECONDS)
        raise LeaseLostError(f"the lease of attempt {self.attempt_id} was lost")

    def conclude(self, write: Callable[[Session], T]) -> T:
        """`insist` on what ends the attempt, and close.

        Its end is no loss from now on: the keeper may look after the commit and before the close,
        and a trainer that was killed for that would have been warm for the next job.
        """
        self._concluding.set()
        try:
            result = self.insist(write)
            self.close()
        finally:
            self._concluding.clear()
        return result

    def close(self) -> None:
        """The attempt has ended: stop both threads, call nobody any more."""
        with self._lock:
            self._closed.set()
        with self._wake:
            self._wake.notify_all()

    def _keep(self) -> None:
        pause = settings().control_seconds
        while not self._closed.wait(pause) and not self.lost:
            pause = settings().control_seconds
            try:
                self._ask_database()
            except UnavailableError as error:
                _log.warning("attempt %s: %s", self.attempt_id, error.what)
                pause = min(pause, _RETRY_SECONDS)
            except Exception:  # noqa: BLE001 (must not end the renewals; the watchdog judges)
                _log.exception("attempt %s: the lease could not be renewed", self.attempt_id)

    def _ask_database(self) -> None:
        sent_at = now()
        due = sent_at >= self._renewed_at + settings().renew_seconds
        with transaction() as session:
            answer = (
                attempts.renew(session, self.attempt_id, settings().lease_seconds)
                if due
                else attempts.look(session, self.attempt_id)
            )
        if answer is None:
            if not self._concluding.is_set():
                self._lose("another ended it")
            return
        if due:
            with self._wake:
                self._renewed_at = sent_at
                self._wake.notify_all()
        if answer.stop is not None:
            self.ask(answer.stop)

    def _watch(self) -> None:
        while not self._closed.is_set() and not self.lost:
            remaining = self.deadline - now()
            if remaining <= 0:
                self._lose("it could not be renewed in time")
                return
            with self._wake:
                # At most a second: a wait does not count the time of a suspend, our clock does.
                self._wake.wait(min(remaining, 1.0))

    def _lose(self, why: str) -> None:
        with self._lock:
            if self._closed.is_set() or self.lost:
                return
            self._lost.set()
        _log.error("attempt %s: the lease is lost: %s", self.attempt_id, why)
        self._on_lost(why)

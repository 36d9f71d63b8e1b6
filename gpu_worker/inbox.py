"""What happens to a running stage, in one queue: what the trainer says, stop requests, deadlines.

The supervisor waits here and nowhere else, so that nothing can happen while it looks elsewhere.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from threading import Thread
from typing import Generic, TypeVar

from gpu_worker.chat_desk import ChatOver
from gpu_worker.lease import LeaseLostError, now
from gpu_worker.protocol import (
    Evaluated,
    Exported,
    Failed,
    Ready,
    Replace,
    Stopped,
    Trained,
)
from gpu_worker.session import LeaseLost
from gpu_worker.trainer_process import Died, TrainerProcess
from models.states import StopReason

T = TypeVar("T")


class Due(Enum):
    """A deadline that has passed."""

    READY = "the trainer had time enough to start"
    LIMIT = "the job has used its time limit"
    GRACE = "a stopping trainer had time enough"


@dataclass(frozen=True)
class Said:
    """A message of the trainer that decides something; the rest goes past the supervisor."""

    trainer: TrainerProcess
    what: Trained | Evaluated | Exported | Stopped | Failed | Ready | Replace | Died


@dataclass(frozen=True)
class Done(Generic[T]):
    """Work in the background has ended."""

    value: T | None = None
    error: BaseException | None = None


Event = Said | StopReason | Due | ChatOver | Done[object]


class Inbox:
    """Any thread may `put`; one thread sets deadlines and waits."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event | LeaseLost] = queue.SimpleQueue()
        self._deadlines: dict[Due, float] = {}

    def put(self, event: Event | LeaseLost) -> None:
        self._events.put(event)

    def set_deadline(self, due: Due, at: float | None) -> None:
        """On `lease.now()`'s clock; None takes it away."""
        if at is None:
            self._deadlines.pop(due, None)
        else:
            self._deadlines[due] = at

    def next(self) -> Event:
        """The next event; a deadline that has passed comes once. Raises LeaseLostError."""
        first = min(self._deadlines, key=lambda due: self._deadlines[due], default=None)
        try:
            if first is None:
                event = self._events.get()
            else:
                event = self._events.get(timeout=max(0.0, self._deadlines[first] - now()))
        except queue.Empty:
            assert first is not None  # noqa: S101 (without a deadline `get` has no time-out)
            del self._deadlines[first]
            return first
        if isinstance(event, LeaseLost):
            raise LeaseLostError(event.why)
        return event

    def in_background(self, work: Callable[[], object]) -> None:
        """Run `work` in a thread; its end is an event. The thread is left alone if nobody waits."""

        def run() -> None:
            try:
                self.put(Done(value=work()))
            except BaseException as error:  # noqa: BLE001 (raised again by whoever waits)
                self.put(Done(error=error))

        Thread(target=run, name="background", daemon=True).start()

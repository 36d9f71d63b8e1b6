"""Short words for tests that have notifications delivered in the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import celora
from models.queries.deliveries import DeliveryView
from models.states import Outcome
from tasks.dispatcher import deliver
from tests import records

SETTINGS = {
    "CELORA_NOTIFY_RETRY_SECONDS": "0.02",
    "CELORA_NOTIFY_ATTEMPTS": "3",
    "CELORA_NOTIFY_TIMEOUT_SECONDS": "600",
    "CELORA_NOTIFY_PRIVATE_HOSTS": "127.0.0.0/8",
    "CELORA_NOTIFY_ALLOW_HTTP": "true",
    "CELORA_NOTIFY_SERVICES": "json",
}


@contextmanager
def delivering(senders: int = 1) -> Iterator[None]:
    """Deliver as so many dispatchers do."""
    stop = threading.Event()
    threads = [threading.Thread(target=deliver.run, args=(stop,)) for _ in range(senders)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}\n{celora.deliveries()}"
        time.sleep(0.02)


def ended(count: int = 1) -> list[DeliveryView]:
    """Wait until so many messages are over; they come oldest first."""

    def over() -> list[DeliveryView]:
        return [one for one in celora.deliveries() if one.ended_at is not None]

    until(lambda: len(over()) >= count, f"{count} messages are over")
    return over()[::-1]


def job_fails() -> str:
    claim = records.running(name="my job")
    error = {"code": "non_finite_loss", "message": "the loss became NaN at step 3"}
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error=error)
    return claim.job_id

"""Asks again where a hub or store did not answer: a hiccup of the network costs no attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gpu_worker.lease import now
from models.errors import UnavailableError
from models.settings import settings

T = TypeVar("T")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 15.0


def patiently(
    fetch: Callable[[], T], *, say: Callable[[str], None], wait: Callable[[float], bool]
) -> T:
    """What `fetch` gives. Raises its UnavailableError once CELORA_FETCH_PATIENCE_SECONDS are over.

    `wait(seconds)` tells that nobody needs it any more, as an event's `wait` does.
    """
    give_up_at = now() + settings().fetch_patience_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return fetch()
        except UnavailableError as error:
            if now() + pause > give_up_at:
                raise
            say(f"waiting to ask again: {error.what}")
            if wait(pause):
                raise
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

"""Waiting on a condition, for tests without processes: `Stack.wait_until` is for those with."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60


def until(condition: Callable[[], bool]) -> None:
    """Look until `condition` holds. Fails after a minute, which no busy machine takes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s"
        time.sleep(0.02)

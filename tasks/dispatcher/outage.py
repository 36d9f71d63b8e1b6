"""Something is down: said once when it begins and once when it ends; the pauses grow."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


class Outage:
    """One for each thing that may be down; `meanwhile` says what that means for jobs."""

    def __init__(self, what: str, meanwhile: str) -> None:
        self.what = what
        self.meanwhile = meanwhile
        self.began_at: float | None = None
        self.failures = 0

    def failed(self, error: Exception) -> float:
        """Note a failure; returns the seconds to wait before the next try."""
        if self.began_at is None:
            self.began_at = time.monotonic()
            log.warning("%s: %s; %s", self.what, str(error).partition("\n")[0], self.meanwhile)
        self.failures += 1
        # The exponent is capped: after days of an outage the power would not fit a float.
        pause = FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10)
        return min(pause, LONGEST_PAUSE_SECONDS)

    def over(self) -> None:
        """It answers; a call that finds it well costs nothing."""
        if self.began_at is not None:
            lasted = time.monotonic() - self.began_at
            log.warning("%s: it is back after %.1f s", self.what, lasted)
            self.began_at, self.failures = None, 0

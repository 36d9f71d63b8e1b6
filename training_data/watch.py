"""A long piece of work looks up now and then: is it to stop, and how far has it come?"""

from __future__ import annotations

import time
from collections.abc import Callable

# Half of the promise that a stop request is seen within 0.5 s: one batch may lie in between.
_LOOK_SECONDS = 0.2

Progress = Callable[[str, int], None]
ShouldStop = Callable[[], bool]


class PreparationStopped(Exception):  # noqa: N818 - not an error, an answer
    """`should_stop` said so. Not an error: the caller asked for it and nothing usable is left."""


class Watch:
    """Polls `should_stop` and reports progress, at most every 0.2 s however often it is called."""

    def __init__(
        self, on_progress: Progress | None = None, should_stop: ShouldStop | None = None
    ) -> None:
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._next = 0.0
        self.what = "reading the data"
        self.rows = 0

    def look(self) -> None:
        """Raises PreparationStopped when asked to stop."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_SECONDS
        if self._should_stop is not None and self._should_stop():
            raise PreparationStopped(self.what)
        if self._on_progress is not None:
            self._on_progress(self.what, self.rows)

    def turn_to(self, what: str, rows: int = 0) -> None:
        """Begin another part of the work, said at once."""
        self.what, self.rows, self._next = what, rows, 0.0
        self.look()

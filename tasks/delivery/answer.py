"""What came of one try to deliver a message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Never holds an address or what a receiver said: causes go into the log."""

    cause: str | None = None  # why it was not delivered, in a few words; none: it was
    status: int | None = None  # HTTP status
    retry_after: float | None = None  # seconds that the receiver asks for
    give_up: bool = False

"""What people are told about: the kinds of notices, their types, and when to try again."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Any

from models.settings import settings


class Notice(StrEnum):
    STARTED = "started"  # a GPU worker has begun to train it, for the first time
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WAITING = "waiting"  # it has waited for a GPU for longer than the target allows
    BUDGET = "budget"  # the month's GPU hours of a tenant or a user are nearly used up
    TEST = "test"  # somebody asked for one


class Kind(StrEnum):
    """How a target is reached."""

    WEBHOOK = "webhook"
    APPRISE = "apprise"


class Format(StrEnum):
    """What a webhook's body looks like."""

    CELORA = "celora"
    OPENAI = "openai"


class DeliveryState(StrEnum):
    WAITING = "waiting"  # to be sent, or to be sent again, at `next_at`
    DELIVERED = "delivered"
    FAILED = "failed"  # given up
    DROPPED = "dropped"  # its target was removed before


# What a target may ask for; a test is sent to whoever it is asked for.
ASKABLE = tuple(notice for notice in Notice if notice is not Notice.TEST)
OF_A_JOB = tuple(notice for notice in ASKABLE if notice is not Notice.BUDGET)

TYPES = {notice: f"job.{notice}" for notice in OF_A_JOB} | {
    Notice.BUDGET: "budget.nearly_spent",
    Notice.TEST: "test",
}

# OpenAI knows these three; a target of that format gets no others.
OPENAI_TYPES = {
    Notice.COMPLETED: "fine_tuning.job.succeeded",
    Notice.FAILED: "fine_tuning.job.failed",
    Notice.CANCELLED: "fine_tuning.job.cancelled",
}

_FACTOR = 4.0
_LONGEST_PAUSE_SECONDS = 6 * 3600.0
_JITTER = 0.2


def pause_after(attempts: int, jitter: float | None = None) -> float | None:
    """Seconds until the next try after so many; None: it is given up.

    5 s, 20 s, 80 s, 5 min, 21 min, 85 min, then every 6 hours at most: 11 tries within 26 hours.
    Each is a fifth shorter or longer by chance, so that a receiver that comes back is not met by
    all at once.
    """
    if attempts >= settings().notify_attempts:
        return None
    pause = min(settings().notify_retry_seconds * _FACTOR ** (attempts - 1), _LONGEST_PAUSE_SECONDS)
    chance = random.uniform(-1, 1) if jitter is None else jitter  # noqa: S311 (no secret)
    return pause * (1 + _JITTER * chance)


def said_of(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a job's error what may leave the house: never a row of somebody's data."""
    if not error:
        return None
    if error.get("code") == "invalid_data":
        count = error.get("problem_count") or 0
        what = f"the data cannot be used ({count} problems)" if count else "the data cannot be used"
    else:
        what = str(error.get("message") or "")[:_LONGEST_MESSAGE]
    return {"code": error.get("code"), "message": what}


_LONGEST_MESSAGE = 500

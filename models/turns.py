"""A job's place within its lane."""

from __future__ import annotations

from datetime import datetime, timedelta

from models.settings import settings


def head_start(priority: int) -> timedelta:
    """The waiting that a priority is worth: so much per step; negative for one below 0."""
    return timedelta(seconds=priority * settings().priority_ageing_seconds)


def turn_at(queued_at: datetime, priority: int) -> datetime:
    """The earliest goes first.

    Waiting and priority both count linearly, so the order of two jobs never changes and an index
    serves; and nobody starves: a job is overtaken only by those that come within (their priority -
    its own) steps after it.
    """
    return queued_at - head_start(priority)

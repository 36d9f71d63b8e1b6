"""The life of a job: its states, its stages, and the edges between states.

docs/job-lifecycle.md draws this table; tests hold every edge that is allowed and every one that
is not.
"""

from __future__ import annotations

from enum import StrEnum

from models.errors import StateError


class JobState(StrEnum):
    PENDING = "pending"  # accepted, data not yet prepared
    QUEUED = "queued"  # prepared; waits for a GPU, or is placed and not yet claimed
    RUNNING = "running"  # a GPU worker has claimed it
    PAUSED = "paused"  # the user holds it; resumes from its newest registered checkpoint
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    """The first stage that is not finished. A finished stage is never run again."""

    PREPROCESS = "preprocess"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"  # the only stage of an export
    GENERATE = "generate"  # the only stage of a chat


class Purpose(StrEnum):
    """What a job is for. An export or a chat works on what another job has trained."""

    TUNE = "tune"
    EXPORT = "export"
    CHAT = "chat"

    @property
    def first_stage(self) -> Stage:
        return _FIRST_STAGES[self]


_FIRST_STAGES = {
    Purpose.TUNE: Stage.PREPROCESS,
    Purpose.EXPORT: Stage.EXPORT,
    Purpose.CHAT: Stage.GENERATE,
}


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    PREEMPTED = "preempted"
    DRAINED = "drained"
    LOST = "lost"  # the lease ran out, or the trainer died under its supervisor
    WITHDRAWN = "withdrawn"  # placed, never claimed, and the GPU went away
    RETRIED = "retried"  # ran out of memory; placed again with a smaller micro-batch


class StopReason(StrEnum):
    """Why a running attempt is asked to stop; a later, stronger reason replaces a weaker one."""

    CANCEL = "cancel"
    PAUSE = "pause"
    PREEMPT = "preempt"
    DRAIN = "drain"


# How an attempt ends that stopped as it was asked to.
STOPPED_AS = {
    StopReason.CANCEL: Outcome.CANCELLED,
    StopReason.PAUSE: Outcome.PAUSED,
    StopReason.PREEMPT: Outcome.PREEMPTED,
    StopReason.DRAIN: Outcome.DRAINED,
}

# An attempt that was asked to stop for two reasons stops for the stronger one.
_STRENGTH = (StopReason.DRAIN, StopReason.PREEMPT, StopReason.PAUSE, StopReason.CANCEL)


def is_stronger(reason: StopReason, than: StopReason | None) -> bool:
    """Whether `reason` replaces a stop that was asked for before."""
    return than is None or _STRENGTH.index(reason) > _STRENGTH.index(than)


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

EDGES: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset(
        {JobState.QUEUED, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED}
    ),
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED}
    ),
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.COMPLETED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.PAUSED,
        }
    ),
    # Back to PENDING when the data was never prepared: there is nothing to train on yet.
    JobState.PAUSED: frozenset({JobState.PENDING, JobState.QUEUED, JobState.CANCELLED}),
    JobState.FAILED: frozenset({JobState.PENDING, JobState.QUEUED}),
    JobState.COMPLETED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def may_become(current: JobState, new: JobState) -> bool:
    return new in EDGES[current]


def require_edge(current: JobState, new: JobState) -> None:
    """Raise StateError unless a job in `current` may become `new`."""
    if not may_become(current, new):
        raise StateError(
            f"a job that is {current} cannot become {new}",
            remedy="see docs/job-lifecycle.md for what each state allows",
        )

"""Where a job's time went: waited and worked for each stage, and how long each epoch took.

Computed from what is on record. Time that somebody held the job (paused, or failed until a retry)
is neither waiting nor work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from celora.views import Attempt, Event, Job, Metric
from models.duration import duration
from models.states import JobState, Stage

_HELD_FROM = frozenset({"paused", "failed"})
_HELD_UNTIL = frozenset({"resumed", "retried"})
_FEW = 6
_AWAY = 1e-6  # an epoch's last step is part of it, however its number was rounded


@dataclass(slots=True)
class StageTime:
    stage: Stage
    waited_seconds: float = 0.0
    worked_seconds: float = 0.0  # of lost attempts too


@dataclass(slots=True)
class EpochTime:
    epoch: int  # from 1
    steps: int
    seconds: float  # of training alone: no loading, checkpoints, held-out losses


@dataclass(frozen=True, slots=True)
class Times:
    stages: list[StageTime] = field(default_factory=list)  # those that were reached
    epochs: list[EpochTime] = field(default_factory=list)


def times_of(
    job: Job,
    attempts: Sequence[Attempt],
    metrics: Sequence[Metric],
    events: Sequence[Event],
    now: datetime,
) -> Times:
    """`now` is the database's, for what has not ended."""
    return Times(
        list(_stages(job, attempts, list(_held(events, now)), now)), list(_epochs(job, metrics))
    )


def stages_in_words(times: Times) -> str:
    """`preprocess 8 s, train 14 min (waited 3 min), evaluate 1 min`."""
    return ", ".join(
        f"{one.stage} {duration(one.worked_seconds)}"
        + (f" (waited {duration(one.waited_seconds)})" if one.waited_seconds >= 1 else "")
        for one in times.stages
    )


def epochs_in_words(times: Times) -> str:
    """Each, while they are few; else how many, and the mean. Empty where none is on record."""
    if not times.epochs:
        return ""
    if len(times.epochs) <= _FEW:
        return ", ".join(f"{one.epoch}: {_precise(one.seconds)}" for one in times.epochs)
    mean = sum(one.seconds for one in times.epochs) / len(times.epochs)
    return f"{len(times.epochs)}, {_precise(mean)} each"


def amount(cost: float) -> str:
    """In the administrator's currency: cents of what is dear, two digits of what is cheap."""
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}"


def _precise(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"  # noqa: PLR2004 (below, a tenth counts)


def _stages(
    job: Job, attempts: Sequence[Attempt], held: list[tuple[datetime, datetime]], now: datetime
) -> Iterator[StageTime]:
    found = {stage: StageTime(stage) for stage in Stage}
    free = job.created_at
    for attempt in attempts:
        ended = attempt.ended_at or now
        if attempt.claimed_at is None:
            continue  # nobody took it: the job waited on
        first = found[Stage(attempt.first_stage)]
        first.waited_seconds += _between(free, attempt.claimed_at, held)
        last = Stage((attempt.claimed_stages or [attempt.first_stage])[-1])
        turn = ended if last is first.stage else attempt.stage_at or ended
        first.worked_seconds += (turn - attempt.claimed_at).total_seconds()
        found[last].worked_seconds += (ended - turn).total_seconds()
        free = ended
    if not any(attempt.ended_at is None and attempt.claimed_at for attempt in attempts):
        until = job.finished_at or now
        if job.state is not JobState.COMPLETED:
            found[job.stage].waited_seconds += _between(free, until, held)
    return (one for one in found.values() if one.waited_seconds or one.worked_seconds)


def _held(events: Sequence[Event], now: datetime) -> Iterator[tuple[datetime, datetime]]:
    since: datetime | None = None
    for event in events:
        if event.kind in _HELD_FROM:
            since = event.created_at
        elif event.kind in _HELD_UNTIL and since is not None:
            yield since, event.created_at
            since = None
    if since is not None:
        yield since, now


def _between(start: datetime, end: datetime, held: list[tuple[datetime, datetime]]) -> float:
    """Seconds from `start` to `end`, without those in which the job was held."""
    total = (end - start).total_seconds()
    for since, until in held:
        total -= max(0.0, (min(end, until) - max(start, since)).total_seconds())
    return max(0.0, total)


def _epochs(job: Job, metrics: Sequence[Metric]) -> Iterator[EpochTime]:
    """Each figure `step_seconds` holds for the steps since the one before: an epoch that ends in
    between gets its part. A step that a lost attempt did in vain is not counted twice."""
    a_step = _epochs_a_step(job, metrics)
    if a_step is None:
        return
    points = [p for p in metrics if (p.stage, p.name) == (Stage.TRAIN, "step_seconds")]
    epochs: dict[int, EpochTime] = {}
    done = 0
    for point in points:
        for step in range(done + 1, point.step + 1):
            number = math.ceil(step * a_step - _AWAY)
            epoch = epochs.setdefault(number, EpochTime(number, 0, 0.0))
            epoch.steps += 1
            epoch.seconds += point.value
        done = max(done, point.step)
    yield from epochs.values()


def _epochs_a_step(job: Job, metrics: Sequence[Metric]) -> float | None:
    last = next((p for p in reversed(metrics) if p.name == "epoch" and p.step), None)
    if last is not None:
        return last.value / last.step
    return job.epoch / job.step if job.epoch and job.step else None

"""How long jobs will take, from how long others took: measured where there is a measurement.

A running job is judged by its own pace. One that waits is taken to be like those that finished
lately: on the same base model with the same method and size, else on the same base model, else of
the same tenant, else all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

from models.states import Stage

# So many of the newest are like enough to the next one; the machine may have changed since.
_NEWEST = 20
ASSUMED_SECONDS = 1800.0
# Of an export and a chat, before any has finished.
_ASSUMED_WORK = {Stage.EXPORT: 120.0, Stage.GENERATE: 300.0}
# Who has outlasted the expectation is expected to take another tenth of what it has taken.
_OVERTIME = 0.1
# A job that is asked to stop writes a checkpoint first.
_STOPPING_SECONDS = 10.0

Group = tuple[object, ...]


class Basis(StrEnum):
    OWN = "own"  # its own pace
    LIKE = "like"  # finished jobs on the same base model
    TENANT = "tenant"  # finished jobs of the same tenant
    RECENT = "recent"  # whatever finished last
    ASSUMED = "assumed"  # nothing has finished yet
    WORK = "work"  # exports or chats, which take their own time


@dataclass(frozen=True, slots=True)
class Estimate:
    seconds: float
    basis: Basis
    group: Group = ()  # the finished jobs that it rests on, …
    finished: int = 0  # … and how many they are


@dataclass(frozen=True, slots=True)
class Work:
    """What a job is, as far as its pace goes."""

    tenant: int
    base_model: str
    method: str
    size: str  # rows a step and tokens a row
    evaluate: bool

    def groups(self) -> Iterator[tuple[Basis, Group]]:
        """Whom it is like, the likest first."""
        yield Basis.LIKE, (self.base_model, self.method, self.size)
        yield Basis.LIKE, (self.base_model, self.method)
        yield Basis.TENANT, (self.tenant,)
        yield Basis.RECENT, ()


@dataclass(frozen=True, slots=True)
class Finished:
    """One attempt that completed its job. Seconds are none for a stage that it did not run."""

    work: Work
    steps: int
    train_seconds: float | None
    evaluation_seconds: float | None
    work_seconds: dict[Stage, float] = field(default_factory=dict)  # of an export or a chat


@dataclass(frozen=True, slots=True)
class Running:
    """One attempt at work; ages in seconds."""

    work: Work
    stage: Stage
    step: int
    start_step: int
    total_steps: int | None
    age: float  # since it was claimed
    stage_age: float
    progress_age: float | None  # since its step was recorded; none: not by this attempt
    limit_seconds: float  # GPU time that its time limit leaves it
    stopping: bool = False


class Paces:
    """What finished lately, the newest first, sorted by what it was."""

    def __init__(self, finished: Iterable[Finished]) -> None:
        train: dict[Group, list[tuple[float, float]]] = defaultdict(list)
        evaluations: dict[Group, list[float]] = defaultdict(list)
        work: dict[Group, list[float]] = defaultdict(list)
        for one in finished:
            for stage, seconds in one.work_seconds.items():
                for group in _of_work(stage, one.work):
                    if len(work[group]) < _NEWEST:
                        work[group].append(seconds)
            for _, group in one.work.groups():
                if one.train_seconds is not None and len(train[group]) < _NEWEST:
                    train[group].append((one.train_seconds, one.steps))
                if one.evaluation_seconds is not None and len(evaluations[group]) < _NEWEST:
                    evaluations[group].append(one.evaluation_seconds)
        # How many, their mean time, their mean number of steps.
        self._train = {
            group: (len(found), fmean(one[0] for one in found), fmean(one[1] for one in found))
            for group, found in train.items()
            if found
        }
        self._evaluations = {
            group: (len(found), fmean(found)) for group, found in evaluations.items() if found
        }
        self._work = {group: (len(found), fmean(found)) for group, found in work.items()}

    def of_waiting(self, work: Work, stage: Stage, steps: int | None) -> Estimate:
        """How long an attempt will take that still has `steps` to do (none: unknown)."""
        if stage in _ASSUMED_WORK:
            return self._adapter_work(stage, work)
        evaluation = self._evaluation(work) if work.evaluate else _NOTHING
        if stage is Stage.EVALUATE:
            return evaluation
        train = self._training(work, steps)
        return _with(train, train.seconds + evaluation.seconds)

    def of_running(self, one: Running) -> Estimate:
        """How long an attempt will go on."""
        if one.stopping:
            return Estimate(_STOPPING_SECONDS, Basis.OWN)
        if one.stage in _ASSUMED_WORK:
            whole = self._adapter_work(one.stage, one.work)
            return _with(whole, _left(whole.seconds, one.stage_age))
        evaluation = self._evaluation(one.work) if one.work.evaluate else _NOTHING
        if one.stage is Stage.EVALUATE:
            left = _with(evaluation, _left(evaluation.seconds, one.stage_age))
        else:
            train = self._rest_of_training(one)
            left = _with(train, train.seconds + evaluation.seconds)
        return _with(left, min(left.seconds, max(0.0, one.limit_seconds - one.age)))

    def _rest_of_training(self, one: Running) -> Estimate:
        done = one.step - one.start_step
        if one.total_steps and done > 0 and one.progress_age is not None:
            pace = max(0.0, one.age - one.progress_age) / done
            rest = (one.total_steps - one.step) * pace
            return Estimate(_left(rest, one.progress_age), Basis.OWN)
        steps = one.total_steps - one.start_step if one.total_steps else None
        like = self._training(one.work, steps)
        return _with(like, _left(like.seconds, one.age))

    def _training(self, work: Work, steps: int | None) -> Estimate:
        for basis, group in work.groups():
            if found := self._train.get(group):
                count, seconds, known = found
                if basis is Basis.LIKE and steps is not None and known > 0:
                    seconds *= steps / known
                return Estimate(seconds, basis, group, count)
        return Estimate(ASSUMED_SECONDS, Basis.ASSUMED)

    def _adapter_work(self, stage: Stage, work: Work) -> Estimate:
        for group in _of_work(stage, work):
            if found := self._work.get(group):
                count, seconds = found
                return Estimate(seconds, Basis.WORK, group, count)
        return Estimate(_ASSUMED_WORK[stage], Basis.WORK)

    def _evaluation(self, work: Work) -> Estimate:
        for basis, group in work.groups():
            if found := self._evaluations.get(group):
                count, seconds = found
                return Estimate(seconds, basis, group, count)
        return Estimate(0.0, Basis.ASSUMED)


_NOTHING = Estimate(0.0, Basis.ASSUMED)


def _of_work(stage: Stage, work: Work) -> tuple[Group, Group]:
    """Exports are like exports, on the same base model first; chats are like chats."""
    return (stage, work.base_model), (stage,)


def _left(expected: float, elapsed: float) -> float:
    return max(expected - elapsed, _OVERTIME * elapsed if elapsed > expected else 0.0)


def _with(estimate: Estimate, seconds: float) -> Estimate:
    return Estimate(seconds, estimate.basis, estimate.group, estimate.finished)

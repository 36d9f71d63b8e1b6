"""Where a job's time went: its stages, through pauses and losses, and its epochs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celora.times import EpochTime, Times, amount, epochs_in_words, stages_in_words, times_of
from celora.views import Attempt, Event, Job, Metric
from models.spec import JobSpec

START = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def job(**changed: Any) -> Job:
    fields: dict[str, Any] = dict.fromkeys(Job.model_fields) | {
        "id": "ftjob-1", "tenant": "t", "user": "u", "state": "completed", "stage": "evaluate",
        "purpose": "tune", "base_model": "b", "method": "lora", "priority": 0, "step": 0,
        "trained_tokens": 0, "gpu_seconds": 0.0, "created_at": START, "queued_at": START,
        "spec": JobSpec(base_model="b", dataset="d"),
    }  # fmt: skip
    return Job.model_validate(fields | changed)


def attempt(first: str, claimed: float | None, ended: float | None, **more: Any) -> Attempt:
    fields: dict[str, Any] = dict.fromkeys(Attempt.model_fields) | {
        "fence": 1,
        "first_stage": first,
        "claimed_stages": [] if claimed is None else [first],
        "placed_at": START,
        "claimed_at": None if claimed is None else at(claimed),
        "ended_at": None if ended is None else at(ended),
    }
    return Attempt.model_validate(fields | more)


def event(kind: str, seconds: float) -> Event:
    return Event(id=1, created_at=at(seconds), level="info", kind=kind, message="", data=None)


def stages(times: Times) -> list[tuple[str, float, float]]:
    return [(one.stage, one.waited_seconds, one.worked_seconds) for one in times.stages]


TRAINED = {"claimed_stages": ["train", "evaluate"]}


def test_a_job_that_ran_through() -> None:
    attempts = [
        attempt("preprocess", 5, 15),
        attempt("train", 75, 1075, stage_at=at(975), **TRAINED),
    ]
    times = times_of(job(), attempts, [], [], at(2000))
    assert stages(times) == [("preprocess", 5, 10), ("train", 60, 900), ("evaluate", 0, 100)]
    assert stages_in_words(times) == (
        "preprocess 10 s (waited 5 s), train 15 min (waited 1 min), evaluate 1 min 40 s"
    )


def test_a_lost_attempt_is_work_and_one_that_nobody_took_is_waiting() -> None:
    attempts = [
        attempt("preprocess", 0, 10),
        attempt("train", 20, 120),
        attempt("train", None, 150),
        attempt("train", 220, 320),
    ]
    times = times_of(job(state="queued", stage="train"), attempts, [], [], at(400))
    assert stages(times) == [("preprocess", 0, 10), ("train", 190, 200)]


def test_the_time_in_which_somebody_held_it_is_neither() -> None:
    attempts = [
        attempt("preprocess", 0, 10),
        attempt("train", 10, 110),
        attempt("train", 1000, 1100),
        attempt("train", 5000, None),
    ]
    events = [
        event("paused", 110), event("resumed", 900), event("failed", 1100), event("retried", 4990),
    ]  # fmt: skip
    times = times_of(job(state="running", stage="train"), attempts, [], events, at(5050))
    assert stages(times) == [("preprocess", 0, 10), ("train", 110, 250)]


@pytest.mark.parametrize(("state", "waited"), [("queued", 50), ("paused", 20)])
def test_a_job_that_waits_or_is_held(state: str, waited: float) -> None:
    attempts = [attempt("preprocess", 0, 10)]
    events = [event("paused", 30)] if state == "paused" else []
    times = times_of(job(state=state, stage="train"), attempts, [], events, at(60))
    assert stages(times) == [("preprocess", 0, 10), ("train", waited, 0)]


def step_seconds(*points: tuple[int, float]) -> list[Metric]:
    return [Metric("train", "step_seconds", step, value) for step, value in points]


def test_epochs_are_the_sums_of_their_steps() -> None:
    """Three epochs of ten steps; every fourth step is on record."""
    points = step_seconds((1, 2.0), (4, 1.0), (8, 1.0), (12, 2.0), (16, 1.0), (20, 1.0), (24, 1.0))
    times = times_of(job(epoch=2.4, step=24), [], points, [], at(0))
    assert times.epochs == [
        EpochTime(1, 10, 2 + 7 + 2 * 2), EpochTime(2, 10, 2 * 2 + 8), EpochTime(3, 4, 4),
    ]  # fmt: skip
    assert epochs_in_words(times) == "1: 13 s, 2: 12 s, 3: 4.0 s"


def test_the_epoch_on_record_counts_more_than_that_of_a_job_just_resumed() -> None:
    points = [*step_seconds((5, 1.0), (10, 1.0)), Metric("train", "epoch", 10, 2.0)]
    times = times_of(job(epoch=2.0, step=5), [], points, [], at(0))
    assert [one.steps for one in times.epochs] == [5, 5]


def test_many_epochs_are_a_mean_and_without_figures_there_are_none() -> None:
    points = step_seconds(*((step, 30.0) for step in range(1, 11)))
    times = times_of(job(epoch=10.0, step=10), [], points, [], at(0))
    assert epochs_in_words(times) == "10, 30 s each"
    assert epochs_in_words(times_of(job(), [], [], [], at(0))) == ""


@pytest.mark.parametrize(
    ("cost", "words"), [(0.0, "0"), (0.00416, "0.0042"), (0.5, "0.5"), (1234.567, "1,234.57")]
)
def test_what_a_job_cost(cost: float, words: str) -> None:
    assert amount(cost) == words

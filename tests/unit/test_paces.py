"""How long jobs will take: their own pace, else that of like ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.paces import ASSUMED_SECONDS, Basis, Finished, Paces, Running, Work
from models.states import Stage

WORK = Work(tenant=1, base_model="m", method="lora", size="4x4x2048", evaluate=False)
RUNNING = Running(
    work=WORK,
    stage=Stage.TRAIN,
    step=30,
    start_step=10,
    total_steps=110,
    age=45.0,
    stage_age=45.0,
    progress_age=5.0,
    limit_seconds=float("inf"),
)


def finished(seconds: float, steps: int = 100, evaluation: float | None = None, **of: object):  # type: ignore[no-untyped-def]  # noqa: ANN201 (a Finished)
    return Finished(replace(WORK, **of), steps, seconds, evaluation)  # type: ignore[arg-type]


def test_a_running_job_goes_on_at_its_own_pace() -> None:
    """20 steps in 40 s; 80 are left, and 5 s of them have passed since the last report."""
    left = Paces([]).of_running(RUNNING)
    assert (left.seconds, left.basis) == (155.0, Basis.OWN)


def test_its_evaluation_is_added_from_like_jobs() -> None:
    paces = Paces([finished(10, evaluation=7), finished(10, evaluation=9)])
    asked = replace(RUNNING, work=replace(WORK, evaluate=True))
    assert paces.of_running(asked).seconds == 163.0
    evaluating = replace(asked, stage=Stage.EVALUATE, stage_age=5.0)
    assert paces.of_running(evaluating).seconds == 3.0


def test_before_its_first_step_it_is_like_others() -> None:
    left = Paces([finished(200)]).of_running(replace(RUNNING, step=10, progress_age=None))
    assert (left.seconds, left.basis) == (155.0, Basis.LIKE)


def test_who_has_outlasted_the_expectation_takes_a_tenth_more() -> None:
    late = replace(RUNNING, step=10, progress_age=None, age=300.0)
    assert Paces([finished(200)]).of_running(late).seconds == 30.0


def test_a_time_limit_and_a_stop_end_it_earlier() -> None:
    assert Paces([]).of_running(replace(RUNNING, limit_seconds=60)).seconds == 15.0
    assert Paces([]).of_running(replace(RUNNING, stopping=True)).seconds == 10.0


@pytest.mark.parametrize(
    ("records", "seconds", "basis", "count"),
    [
        ([finished(50), finished(70)], 30.0, Basis.LIKE, 2),  # 60 s for 100 steps; 50 are asked
        ([finished(50, size="1x1x8")], 25.0, Basis.LIKE, 1),
        ([finished(50, base_model="other")], 50.0, Basis.TENANT, 1),
        ([finished(50, base_model="other", tenant=2)], 50.0, Basis.RECENT, 1),
        ([], ASSUMED_SECONDS, Basis.ASSUMED, 0),
    ],
)
def test_a_waiting_job_is_like_the_likest_there_are(
    records: list[Finished], seconds: float, basis: Basis, count: int
) -> None:
    found = Paces(records).of_waiting(WORK, Stage.TRAIN, 50)
    assert (found.seconds, found.basis, found.finished) == (seconds, basis, count)


def test_like_jobs_win_over_others_and_only_the_newest_count() -> None:
    records = [finished(40)] * 20 + [finished(4000)] * 20 + [finished(9, base_model="x")] * 20
    assert Paces(records).of_waiting(WORK, Stage.TRAIN, None).seconds == 40.0


def test_a_job_that_only_has_to_be_evaluated_takes_that_long() -> None:
    work = replace(WORK, evaluate=True)
    paces = Paces([finished(100, evaluation=6)])
    assert paces.of_waiting(work, Stage.EVALUATE, None).seconds == 6.0
    assert paces.of_waiting(work, Stage.TRAIN, 100).seconds == 106.0

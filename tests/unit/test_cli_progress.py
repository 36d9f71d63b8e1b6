"""What a watch shows: computed from what it saw, and drawn at any width."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from math import inf, nan
from typing import Any

import pytest
from rich.console import Console

from celora.cli.progress import Progress, panel, plain_line, sparkline
from celora.views import Event, Job
from models.spec import JobSpec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def job(**changed: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "ftjob-abcdefABCDEF0123456789ab",
        "tenant": "default",
        "user": "ann",
        "state": "running",
        "stage": "train",
        "base_model": "/models/tiny-base",
        "method": "lora",
        "priority": 0,
        "step": 0,
        "total_steps": 200,
        "trained_tokens": 0,
        "gpu_seconds": 0.0,
        "created_at": NOW,
        "queued_at": NOW,
        "spec": JobSpec(base_model="/models/tiny-base", dataset="rows.jsonl"),
    }
    missing = dict.fromkeys(Job.model_fields)
    return Job.model_validate(missing | fields | changed)


def event(number: int, message: str) -> Event:
    return Event(id=number, created_at=NOW, level="info", kind="x", message=message, data=None)


def drawn(progress: Progress, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(panel(progress, width))
    return out.getvalue().splitlines()


def at_half_time() -> Progress:
    progress = Progress(job())
    for step in range(1, 101):
        now = job(step=step, train_loss=3 - step / 50, tokens_per_second=3412.0)
        progress.update(now, {step: 3 - step / 50}, [], clock=step * 0.5)
    return progress


def test_the_time_left_follows_from_the_pace() -> None:
    assert at_half_time().seconds_left == pytest.approx(50.0)  # 100 steps at half a second each


def test_the_pace_is_that_of_the_last_minute() -> None:
    progress = at_half_time()
    for step in range(101, 131):
        progress.update(job(step=step), {}, [], clock=50 + (step - 100) * 4.0)
    assert progress.seconds_left == pytest.approx(70 * 4.0)


def test_a_resume_from_an_earlier_checkpoint_begins_the_pace_and_the_curve_anew() -> None:
    progress = at_half_time()
    progress.update(job(step=40), {}, [], clock=60.0)
    assert progress.seconds_left is None
    assert max(progress.losses) == 40
    progress.update(job(step=50), {}, [], clock=70.0)
    assert progress.seconds_left == pytest.approx(150.0)


def test_the_time_in_the_queue_does_not_count() -> None:
    progress = at_half_time()
    progress.update(job(step=100, state="queued"), {}, [], clock=60.0)
    progress.update(job(step=100), {}, [], clock=3600.0)
    assert progress.seconds_left is None
    progress.update(job(step=110), {}, [], clock=3605.0)
    assert progress.seconds_left == pytest.approx(45.0)


def test_there_is_no_time_left_outside_of_training() -> None:
    progress = at_half_time()
    progress.update(job(step=200, stage="evaluate"), {}, [], clock=51.0)
    assert progress.seconds_left is None


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 10, ""),
        ([1.0], 10, ""),
        ([1.0, 2.0], 10, "▁█"),
        ([3.0, 2.0, 1.0, 0.0], 2, "█▁"),
        ([1.0, 1.0, 1.0], 10, "▁▁▁"),
        ([0.0, nan, 1.0], 10, "▁·█"),
        ([0.0, inf, 1.0], 10, "▁·█"),
        ([nan, nan], 10, ""),
        ([1.0, 2.0], 0, ""),
    ],
)
def test_sparkline(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, width) == expected


def test_a_plain_line_tells_step_loss_speed_and_time_left() -> None:
    line = plain_line(at_half_time()).partition("  ")[2]
    assert line == "train  step 100/200  loss 1  3,412 tokens/s  50 s left"


def test_a_plain_line_tells_the_trouble() -> None:
    progress = at_half_time()
    progress.trouble = "the database does not answer; trying again"
    assert plain_line(progress).endswith("train  the database does not answer; trying again")


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_panel_keeps_its_width_and_its_height(width: int) -> None:
    progress = at_half_time()
    progress.events += [event(1, "submitted by ann"), event(2, "a long message " * 20)]
    lines = drawn(progress, width)
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 2 + 2 + 3 + 2


def test_the_panel_tells_stage_step_loss_speed_and_time_left() -> None:
    text = "\n".join(drawn(at_half_time(), 100))
    for part in (
        "✓ preprocess", "● train", "○ evaluate", "step 100 of 200", "50%", "loss 1.0000",
        "3,412 tokens/s", "time left 50 s", "lora on tiny-base", "running",
    ):  # fmt: skip
        assert part in text, part


def test_the_panel_of_a_finished_job() -> None:
    progress = Progress(job(state="completed", stage="evaluate", step=200))
    assert "✓ evaluate" in "\n".join(drawn(progress, 80))
    progress.job = job(state="failed", stage="train", step=100)
    assert "✗ train" in "\n".join(drawn(progress, 80))


def test_without_an_evaluation_there_is_no_such_stage() -> None:
    spec = JobSpec(base_model="b", dataset="d", evaluate=False)
    assert "evaluate" not in "\n".join(drawn(Progress(job(spec=spec)), 80))

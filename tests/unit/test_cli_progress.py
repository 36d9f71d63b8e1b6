"""What a watch shows: computed from what it saw, and drawn at any width."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from math import inf, nan
from typing import Any

import pytest
from rich.console import Console

from celora.cli.loss_chart import loss_chart
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
    missing = {name: None for name, field in Job.model_fields.items() if field.is_required()}
    return Job.model_validate(missing | fields | changed)


def event(number: int, message: str) -> Event:
    return Event(id=number, created_at=NOW, level="info", kind="x", message=message, data=None)


def drawn(progress: Progress, width: int, rows: int = 0) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(panel(progress, width, rows))
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


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_with_rows_to_spare_the_losses_are_drawn(width: int) -> None:
    progress = at_half_time()
    progress.held_out = {50: 2.5, 100: 1.5}
    lines = drawn(progress, width, rows=30)
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 2 + 2 + 3 + 14 + 2  # border, stages, numbers, chart, its legend
    text = "\n".join(lines)
    assert "held out 1.5000" in text
    assert "100" in lines[-4]  # the newest step, at the end of the axis
    assert "┤" in text
    assert any("⠀" < letter <= "⣿" for letter in text)  # braille: the curves
    assert "█" not in text  # no bars beside it


@pytest.mark.parametrize(("width", "rows"), [(80, 20), (80, 0), (30, 40)])
def test_without_the_room_the_losses_stay_a_line_of_bars(width: int, rows: int) -> None:
    text = "\n".join(drawn(at_half_time(), width, rows))
    assert "┤" not in text
    assert {len(line) for line in text.splitlines()} == {width}


def test_a_chart_leaves_out_what_is_no_number_and_needs_three_points() -> None:
    assert loss_chart({1: 1.0, 2: nan, 3: inf, 4: 0.5}, {}, 60, 10) is None
    chart = loss_chart({1: 1.0, 2: nan, 3: inf, 4: 0.5, 5: 0.4}, {4: nan}, 60, 10)
    assert chart is not None
    assert [len(line) for line in chart.plain.splitlines()] == [60] * 10


def test_a_long_run_is_drawn_with_few_points() -> None:
    """Of 100,000 steps, and both curves, in their colours."""
    steps = range(1, 100_001)
    chart = loss_chart({step: 5 / step**0.3 for step in steps}, {10: 3.0, 90_000: 1.0}, 80, 12)
    assert chart is not None
    assert {str(span.style) for span in chart.spans} >= {"color(12)", "color(10)"}
    assert "100,000" in chart.plain


def test_a_resume_takes_back_the_held_out_losses_too() -> None:
    progress = at_half_time()
    progress.update(job(step=100), {}, [], clock=51.0, held_out={40: 2.0, 80: 1.0})
    progress.update(job(step=60), {}, [], clock=60.0)
    assert progress.held_out == {40: 2.0}


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


def test_an_export_has_one_stage_and_a_tuning_none_of_it() -> None:
    assert "export" not in "\n".join(drawn(at_half_time(), 100))
    text = "\n".join(drawn(Progress(job(purpose="export", stage="export")), 80))
    assert "● export" in text
    assert "train" not in text

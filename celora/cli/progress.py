"""A job's progress, gathered over a watch and drawn: as a live panel, or as plain lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

from celora.cli.loss_chart import legend, loss_chart
from celora.cli.output import STATE_STYLES, duration
from models.states import JobState, Purpose, Stage

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from celora.views import Event, Job

_BARS = "▁▂▃▄▅▆▇█"
_WINDOW_SECONDS = 60.0  # over which the speed is measured
_SHOWN_EVENTS = 4
_TEXT = 16  # rows of the live view beside the chart, and some air
_TALLEST = 14


@dataclass(slots=True)
class Progress:
    """What a watch has seen so far. Feed it with `update`; `clock` is in seconds."""

    job: Job
    losses: dict[int, float] = field(default_factory=dict)  # by step
    held_out: dict[int, float] = field(default_factory=dict)  # losses on held-out rows, likewise
    events: list[Event] = field(default_factory=list)
    trouble: str | None = None  # why there is no news at the moment
    _pace: deque[tuple[float, int]] = field(default_factory=deque)

    def update(
        self,
        job: Job,
        losses: dict[int, float],
        events: Sequence[Event],
        clock: float,
        held_out: dict[int, float] | None = None,
    ) -> None:
        if job.step < self.job.step:  # resumed from an earlier checkpoint
            self._pace.clear()
            for known in (self.losses, self.held_out):
                for step in [step for step in known if step > job.step]:
                    del known[step]
        self.job = job
        self.trouble = None
        self.losses |= losses
        self.held_out |= held_out or {}
        self.events += events
        if job.state is not JobState.RUNNING:
            self._pace.clear()  # it waits: no time that counts for its pace
        elif not self._pace or self._pace[-1][1] != job.step:
            self._pace.append((clock, job.step))
        while len(self._pace) > 2 and clock - self._pace[0][0] > _WINDOW_SECONDS:  # noqa: PLR2004 (two points make a pace)
            self._pace.popleft()

    @property
    def seconds_left(self) -> float | None:
        """Of the training, by the pace of the last minute; None while there is none to go by."""
        job = self.job
        if job.stage is not Stage.TRAIN or job.state is not JobState.RUNNING:
            return None
        if job.total_steps is None or len(self._pace) < 2:  # noqa: PLR2004 (as above)
            return None
        (start, first), (end, last) = self._pace[0], self._pace[-1]
        if last <= first or end <= start:
            return None
        return (job.total_steps - last) * (end - start) / (last - first)


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as bars, averaged into at most `width` of them; empty below two values."""
    if len(values) < 2 or width < 1:  # noqa: PLR2004 (one point is no line)
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if isfinite(mean)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BARS[round((mean - low) * scale)] if low <= mean <= high else "·" for mean in means
    )


def plain_line(progress: Progress) -> str:
    """One line for a log file: the clock, the stage, and what is known."""
    job = progress.job
    parts = [time.strftime("%H:%M:%S"), job.state if job.state != "running" else str(job.stage)]
    if progress.trouble:
        parts.append(progress.trouble)
    elif job.state is JobState.RUNNING and job.stage is Stage.TRAIN and job.total_steps:
        parts.append(f"step {job.step}/{job.total_steps}")
        if job.train_loss is not None:
            parts.append(f"loss {job.train_loss:.4g}")
        if job.tokens_per_second:
            parts.append(f"{job.tokens_per_second:,.0f} tokens/s")
        if progress.seconds_left is not None:
            parts.append(f"{duration(progress.seconds_left)} left")
    if job.activity and not job.finished:
        parts.append(job.activity)
    return "  ".join(parts)


def panel(progress: Progress, width: int, rows: int = 0) -> RenderableType:
    """The live view, at most `width` columns wide. With `rows` to spare it draws the losses; else
    they are a line of bars."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    job = progress.job
    style = STATE_STYLES.get(job.state, "")
    inner = width - 4
    lines: list[RenderableType] = [_stages(job), Text("")]
    if job.total_steps:
        chart = loss_chart(progress.losses, progress.held_out, inner, min(_TALLEST, rows - _TEXT))
        lines += [_bar(job, inner), _numbers(progress, inner, bars=chart is None), Text("")]
        if chart is not None:
            lines += [chart, legend(progress.held_out), Text("")]
    lines += [
        Text.assemble((f"{event.created_at.astimezone():%H:%M:%S}  ", "dim"), event.message)
        for event in progress.events[-_SHOWN_EVENTS:]
    ]
    for line in lines:
        if isinstance(line, Text):
            line.no_wrap, line.overflow = True, "ellipsis"
    what = f"{job.method} on {job.base_model.rstrip('/').rpartition('/')[2]}"
    title = Text.assemble((f" {job.name or job.id} ", "bold"), (f"{what} ", "dim"))
    state = progress.trouble or (f"asked to {job.stop_requested}" if job.stop_requested else "")
    below = Text.assemble((f" {job.state} ", style), (f"{state} " if state else "", "yellow"))
    return Panel(
        Group(*lines),
        title=title,
        title_align="left",
        subtitle=below,
        subtitle_align="right",
        width=width,
        border_style="dim" if not job.finished else style,
    )


def _stages(job: Job) -> Text:
    """preprocess ✓ → train ● → evaluate ○, and what is being done in words."""
    from rich.text import Text

    stages = [job.purpose.first_stage]
    if job.purpose is Purpose.TUNE:
        stages += [Stage.TRAIN, Stage.EVALUATE] if job.spec.evaluate else [Stage.TRAIN]
    reached = stages.index(job.stage) if job.stage in stages else len(stages)
    if job.state is JobState.COMPLETED:
        reached = len(stages)
    text = Text()
    for position, stage in enumerate(stages):
        if position:
            text.append("  →  ", "dim")
        if position < reached:
            text.append(f"✓ {stage}", "green")
        elif position == reached and not job.finished:
            text.append(f"● {stage}", "bold blue")
        elif position == reached:
            text.append(f"✗ {stage}", STATE_STYLES.get(job.state, ""))
        else:
            text.append(f"○ {stage}", "dim")
    if job.activity and not job.finished:
        text.append(f"    {job.activity}", "italic")
    return text


def _bar(job: Job, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    total = job.total_steps or 1
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    count = f"step {job.step:,} of {total:,}  {min(1.0, job.step / total):>4.0%}"
    grid.add_row(
        ProgressBar(
            total=total,
            completed=job.step,
            width=max(10, width - len(count) - 2),
            complete_style="cyan",
            finished_style="green",
        ),
        count,
    )
    return grid


def _numbers(progress: Progress, width: int, *, bars: bool) -> Text:
    from rich.text import Text

    job = progress.job
    facts: list[tuple[str, str]] = []
    if progress.seconds_left is not None:
        facts.append(("time left", duration(progress.seconds_left)))
    if job.tokens_per_second:
        facts.append(("speed", f"{job.tokens_per_second:,.0f} tokens/s"))
    text = Text()
    if job.train_loss is not None:
        text.append("loss ", "dim").append(f"{job.train_loss:.4f}  ", "bold")
        if bars:
            taken = len(text) + sum(len(a) + len(b) + 5 for a, b in facts)
            losses = [progress.losses[step] for step in sorted(progress.losses)]
            text.append(sparkline(losses, min(40, width - taken - 2)), "cyan")
        text.append("   ")
    for name, value in facts:
        text.append(f"{name} ", "dim").append(f"{value}   ")
    return text

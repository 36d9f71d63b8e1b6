"""The charts of a report, drawn with Matplotlib: small, readable on paper and on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celora.report.facts import Run
from models.errors import SetupError

# Told apart in print and by people who do not see red and green apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.edgecolor": "#888888",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, selectable, read aloud
    "svg.hashsalt": "celora",  # the same report gives the same bytes
}
_MANY_POINTS = 400


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    x: str
    y: str
    lines: list[tuple[str, list[float], list[float]]]  # label, x, y


def charts_of(runs: list[Run]) -> list[Chart]:
    """Those for which there is anything to draw. Of several runs, each is a line."""
    one = len(runs) == 1
    drawn = [
        _steps(
            "Loss", "loss", runs, [("train_loss", "training"), ("eval_loss", "held out")], one=one
        ),
        _steps(
            "Reward margin",
            "",
            runs,
            [("rewards/margins", "training"), ("eval_rewards/margins", "held out")],
            one=one,
        ),
        _steps("Learning rate", "", runs, [("learning_rate", "")], one=one),
        _steps("Gradient norm", "", runs, [("grad_norm", "")], one=one),
        _steps("Throughput", "tokens/s", runs, [("tokens_per_second", "")], one=one),
        _device("Device utilisation", "%", runs, "utilisation_percent", 1.0),
        _device("Device memory", "GB", runs, "memory_bytes", 1e-9),
    ]
    return [chart for chart in drawn if chart.lines]


def svg(chart: Chart) -> str:
    """The chart as an <svg> element that scales to its place. Raises SetupError."""
    with _figure(6.2, 2.7) as figure:
        _draw(figure.add_subplot(), chart)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = target.getvalue()
    return text[text.index("<svg") :]


def png(charts: Sequence[Chart], path: Path, title: str) -> None:
    """All charts on one sheet. Raises SetupError."""
    columns = 2 if len(charts) > 1 else 1
    rows = max(1, -(-len(charts) // columns))
    with _figure(6.2 * columns, 2.9 * rows + 0.5) as figure:
        for place, chart in enumerate(charts, start=1):
            _draw(figure.add_subplot(rows, columns, place), chart)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.tight_layout()
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A figure of its own, in inches: not pyplot's, which would keep it and look for a window."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SetupError(
            "reports are drawn with Matplotlib, which is not installed",
            remedy="pip install 'celora[report]'",
        ) from error
    with rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def _draw(axes: Any, chart: Chart) -> None:
    for number, (label, x, y) in enumerate(chart.lines):
        mark = "o" if len(x) == 1 else None
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, y, label=label or None, color=colour, linewidth=1.4, marker=mark, markersize=4)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.margins(x=0.01)
    if any(label for label, _, _ in chart.lines):
        axes.legend(fontsize=9)


def _steps(
    title: str, unit: str, runs: list[Run], metrics: list[tuple[str, str]], *, one: bool
) -> Chart:
    lines = []
    for run in runs:
        for metric, words in metrics:
            steps, values = run.curve(metric)
            if steps:
                label = words if one else " ".join(filter(None, (run.label, words)))
                lines.append((label, *_thinned([float(step) for step in steps], values)))
    return Chart(title, "optimizer step", unit, lines)


def _device(title: str, unit: str, runs: list[Run], name: str, factor: float) -> Chart:
    lines = []
    for run in runs:
        pairs = [
            (seconds, value * factor)
            for seconds, value in zip(run.device.seconds, getattr(run.device, name), strict=True)
            if value is not None
        ]
        if pairs:
            label = "" if len(runs) == 1 else run.label
            lines.append((label, [second for second, _ in pairs], [value for _, value in pairs]))
    return Chart(title, "seconds since its start", unit, lines)


def _thinned(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most some hundred points, each the mean of its neighbours: a page stays small."""
    width = -(-len(x) // _MANY_POINTS)
    if width <= 1:
        return x, y
    groups = range(0, len(x), width)
    return (
        [x[start : start + width][-1] for start in groups],
        [sum(part) / len(part) for part in (y[start : start + width] for start in groups)],
    )

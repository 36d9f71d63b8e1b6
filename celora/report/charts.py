"""The charts of a report, drawn with Matplotlib: small, readable on paper and on a phone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celora.report.facts import Figures, Run
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
class Line:
    """Those of one run have its colour; the second of them (held out) is dashed."""

    label: str
    x: list[float]
    y: list[float]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    x: str
    y: str
    lines: list[Line]


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
    with _figure(5.0, 2.5) as figure:  # its text stays readable at the width of a phone
        _draw(figure.add_subplot(), chart)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = target.getvalue()
    return text[text.index("<svg") :]


def png(charts: Sequence[Chart], figures: Figures, path: Path, title: str) -> None:
    """All charts on one sheet, and below them base against tuned. Raises SetupError."""
    columns = 2 if len(charts) > 1 else 1
    rows = -(-len(charts) // columns)
    table = [0.4 + 0.25 * len(figures.rows)] if figures.rows else []
    heights = [*[2.9] * rows, *table] or [1.0]
    with _figure(6.2 * columns, sum(heights) + 0.5) as figure:
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for place, chart in enumerate(charts):
            _draw(figure.add_subplot(grid[place // columns, place % columns]), chart)
        if figures.rows:
            _write(figure.add_subplot(grid[rows, :]), figures)
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
    for line in chart.lines:
        axes.plot(
            line.x,
            line.y,
            label=line.label or None,
            color=line.colour,
            linestyle="--" if line.dashed else "-",
            linewidth=1.4,
            marker="o" if len(line.x) == 1 else None,
            markersize=4,
        )
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.margins(x=0.01)
    if any(line.label for line in chart.lines):
        axes.legend(fontsize=9)


def _write(axes: Any, figures: Figures) -> None:
    """The table, without lines but the one below its titles."""
    axes.set_axis_off()
    axes.set_title("On held-out rows")
    made = axes.table(
        [[words, *values] for words, values in figures.rows],
        colLabels=["", *figures.titles],
        loc="upper left",
        edges="horizontal",
    )
    made.auto_set_font_size(False)  # noqa: FBT003 (Matplotlib's signature)
    made.set_fontsize(10)
    for (_, column), cell in made.get_celld().items():
        cell.set_text_props(ha="left" if column == 0 else "right")
        cell.set_edgecolor("#e6e6e6")


def _steps(
    title: str, unit: str, runs: list[Run], metrics: list[tuple[str, str]], *, one: bool
) -> Chart:
    lines = []
    for number, run in enumerate(runs):
        for place, (metric, words) in enumerate(metrics):
            steps, values = run.curve(metric)
            if steps:
                label = words if one else " ".join(filter(None, (run.label, words)))
                x, y = _thinned([float(step) for step in steps], values)
                colour = COLOURS[(number + (place if one else 0)) % len(COLOURS)]
                lines.append(Line(label, x, y, colour, dashed=place > 0))
    return Chart(title, "optimizer step", unit, lines)


def _device(title: str, unit: str, runs: list[Run], name: str, factor: float) -> Chart:
    lines = []
    for number, run in enumerate(runs):
        pairs = [
            (seconds, value * factor)
            for seconds, value in zip(run.device.seconds, getattr(run.device, name), strict=True)
            if value is not None
        ]
        if pairs:
            label = "" if len(runs) == 1 else run.label
            x, y = _thinned([second for second, _ in pairs], [value for _, value in pairs])
            lines.append(Line(label, x, y, COLOURS[number % len(COLOURS)]))
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

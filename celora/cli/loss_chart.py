"""A job's losses as a chart for the terminal."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

NARROWEST, LOWEST = 30, 6  # below, a chart tells nothing
_FEWEST = 3

Losses = dict[int, float]  # by step


def loss_chart(training: Losses, held_out: Losses, width: int, height: int) -> Text | None:
    """Both curves, exactly `width` by `height`; None where there is no room, or little to draw."""
    training, held_out = _thinned(training, 2 * width), _thinned(held_out, 2 * width)
    if width < NARROWEST or height < LOWEST or len(training) < _FEWEST:
        return None
    import plotext
    from rich.text import Text

    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.theme("simple")
    figure.legend(False)
    figure.axes(False, axis="x", side="upper")
    figure.axes(False, axis="y", side="right")
    for points in (training, held_out):
        if points:
            line = figure.signal(list(points), list(points.values()), marker="braille")
            figure.draw(line.lines())
    first, last = min(training), max([*training, *held_out])
    steps = [first, (first + last) // 2, last]
    figure.ruler("x").ticks(steps, [f"{step:,}" for step in steps])
    return Text.from_ansi(str(figure.build()).rstrip("\n"))


def legend(held_out: Losses) -> Text:
    """In the colours of the curves; with the newest held-out loss."""
    from rich.text import Text

    text = Text.assemble(("── ", "bright_blue"), ("training", "dim"))
    if held_out:
        newest = held_out[max(held_out)]
        text.append("   ── ", "bright_green").append("held out ", "dim").append(f"{newest:.4f}")
    return text


def _thinned(losses: Losses, most: int) -> Losses:
    """Without what cannot be drawn, and with at most `most` points, each the mean of neighbours."""
    steps = sorted(step for step, loss in losses.items() if isfinite(loss))
    count = max(1, min(most, len(steps)))
    edges = [index * len(steps) // count for index in range(count + 1)]
    return {
        steps[b - 1]: sum(losses[step] for step in steps[a:b]) / (b - a)
        for a, b in pairwise(edges)
        if b > a
    }

"""How commands print: tables and words for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.duration import duration as duration  # noqa: PLC0414 (commands take it from here)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from models.queries.waiting import Why

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="A job's id, a unique beginning of it, or `last`.", show_default=False
    ),
]

_GAP = 3  # between two columns of a table
_WIDE, _SHORT_ID = 120, 14

STATE_STYLES = {
    "pending": "cyan",
    "queued": "cyan",
    "running": "bold blue",
    "paused": "yellow",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "magenta",
    "free": "green",
    "busy": "bold blue",
    "placed": "blue",
    "cordoned": "yellow",
    "held": "yellow",
    "unknown": "yellow",
    "stale": "red",
}


def print_json(value: Any) -> None:
    """Views, or lists or dicts of them."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def console(*, stderr: bool = False) -> Console:
    """Wide when it writes to a file or a pipe: there a table must not be cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, width=width, highlight=False)


def is_poor_terminal() -> bool:
    """True where cursor movements would end as rubbish: a pipe, a log file, a dumb terminal."""
    return (
        not sys.stdout.isatty()
        or os.environ.get("TERM", "dumb") in {"dumb", "unknown"}
        or "NO_COLOR" in os.environ
    )


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: str = "",
    spare: Sequence[str] = (),
) -> Table:
    """A table without a frame; titles in `right` (space-separated) name right-aligned columns.

    Columns in `spare` are left out, the first named first, where the console is too narrow for all;
    one without an entry always.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    titles, rows = _fitting(list(titles), [list(row) for row in rows], spare, console().width)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for title in titles:
        made.add_column(
            title, justify="right" if title in right.split() else "left", overflow="fold"
        )
    for row in rows:
        # Text, not str: a name with brackets is no markup.
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def _fitting(
    titles: list[str], rows: list[list[Any]], spare: Sequence[str], width: int
) -> tuple[list[str], list[list[Any]]]:
    for title in spare:
        at = titles.index(title)
        if not any(str(row[at]) for row in rows) or _natural_width(titles, rows) > width:
            titles = titles[:at] + titles[at + 1 :]
            rows = [row[:at] + row[at + 1 :] for row in rows]
    return titles, rows


def _natural_width(titles: list[str], rows: list[list[Any]]) -> int:
    columns = zip(titles, *rows, strict=True)
    return sum(max(len(str(cell)) for cell in column) + _GAP for column in columns) - _GAP


def short_id(job_id: str) -> str:
    """As much of a job's id as a narrow console has room for; commands take its beginning."""
    return job_id if console().width >= _WIDE else job_id[:_SHORT_ID]


def facts(rows: Iterable[tuple[str, Any]]) -> Table:
    """Names and values, one pair a line."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 3))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, Text(str(value)))
    return made


def state_text(state: str) -> Any:
    from rich.text import Text

    return Text(state, STATE_STYLES.get(state, ""))


def age(moment: datetime | None) -> str:
    return "" if moment is None else duration((datetime.now(UTC) - moment).total_seconds())


def until(moment: datetime) -> str:
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {duration(seconds)}" if seconds >= 1 else "now"


def expected_start(why: Why) -> str:
    """The moment, how far it is, and what that rests on; empty where nothing is expected."""
    moment = why.expected_start_at
    if moment is None:
        return ""
    local = moment.astimezone()
    day = "%T" if local.date() == datetime.now().astimezone().date() else "%F %R"
    return f"{local:{day}} ({until(moment)}), {why.basis}"


def size(count: float) -> str:
    """In powers of 1,000, as fields, limits and plans have them: 1 GB is 10⁹ bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 (the base of these units)
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _plain(value: Any) -> Any:
    from dataclasses import asdict, is_dataclass

    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", warnings=False)  # a row may hold what it should not
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)

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


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]], *, right: str = "") -> Table:
    """A table without a frame; titles in `right` (space-separated) name right-aligned columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for title in titles:
        made.add_column(
            title, justify="right" if title in right.split() else "left", overflow="fold"
        )
    for row in rows:
        # Text, not str: a name with brackets is no markup.
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


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
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 (the base of these units)
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


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

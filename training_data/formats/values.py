"""Taking values out of a record, with a problem that names the column when one is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from training_data.problems import RowError

_MOST_LISTED = 20
_KINDS = {
    bool: "true/false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def kind(value: Any) -> str:
    """A value's type as a person would name it."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def text(record: dict[str, Any], column: str) -> str:
    """A column's text; '' where it is missing or null. Raises RowError for another type."""
    value = record.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        raise RowError(
            f"`{column}` is {kind(value)}, not text",
            f'write it as text: "{shown[:40]}"'
            if isinstance(value, (int, float))
            else "write it as one piece of text",
        )
    return value


def required_text(record: dict[str, Any], column: str) -> str:
    """A column's text that must be there and not blank. Raises RowError."""
    value = text(record, column)
    if not value or value.isspace():
        if column not in record:
            raise missing(record, column)
        raise RowError(f"`{column}` is empty", "fill it in, or remove the row")
    return value


def missing(record: dict[str, Any], column: str) -> RowError:
    return RowError(
        f"there is no `{column}`; the row has: {listed(record)}",
        "add it, or name the column that holds it, e.g. --map completion=answer",
    )


def listed(columns: Iterable[Any]) -> str:
    """Column names for a message, not more than a person would read."""
    names = [str(name)[:40] for name in columns]
    more = len(names) - _MOST_LISTED
    return (", ".join(names[:_MOST_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")

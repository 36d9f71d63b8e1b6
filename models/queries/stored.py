"""SQL for what lies in JSON columns, where other programs and versions may have written."""

from __future__ import annotations

_MOST = 2**31 - 1


def number(column: str, name: str) -> str:
    """A field that is a number from 0 to 2³¹ - 1; null where it is none.

    A plain cast fails the whole statement, for all other jobs too, at one row that holds a word.
    """
    value = f"{column} -> '{name}'"
    return (
        f"CASE WHEN jsonb_typeof({value}) = 'number'"
        f" THEN least(greatest(({value})::numeric, 0), {_MOST})::float8 END"
    )

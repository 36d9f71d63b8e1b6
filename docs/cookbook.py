"""`python docs/cookbook.py`: ask the database every question of docs/sql.md, and write the answers
below each. The database is that of CELORA_DATABASE_URL."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from models.session import transaction

PAGE = Path(__file__).parent / "sql.md"
_BLOCK = re.compile(r"```sql\n(?P<question>.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)


def questions(page: str) -> list[str]:
    return [found["question"] for found in _BLOCK.finditer(page)]


def answered(page: str) -> str:
    return _BLOCK.sub(lambda found: _with_answer(found["question"]), page)


def _with_answer(question: str) -> str:
    with transaction() as session:
        result = session.execute(text(question.rstrip().rstrip(";")))
        titles, rows = list(result.keys()), [[_shown(cell) for cell in row] for row in result]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    counted = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return f"```sql\n{question}```\n\n```text\n" + "\n".join([*lines, counted]) + "\n```\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, timedelta):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(answered(PAGE.read_text()))
    print(f"wrote {PAGE}")

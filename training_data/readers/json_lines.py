"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from training_data.problems import Problems
from training_data.readers.lines import read_lines


def read_json_lines(stream: BufferedReader, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Blank lines are passed over; a line that is not JSON becomes a problem."""
    for number, line in read_lines(stream, problems):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(
                number,
                f"broken JSON: {error.msg} at column {error.colno}",
                "write one whole JSON object per line",
            )
        except (ValueError, RecursionError) as error:
            # A number of thousands of digits, brackets nested a thousand deep.
            problems.add(number, f"unreadable JSON: {error}", "write it as plain text fields")
        else:
            yield number, record

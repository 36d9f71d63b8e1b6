"""JSON Lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from training_data.problems import Problems
from training_data.readers.lines import read_lines

_GOES_ON = ("{", "[", ",")  # what no whole object ends with


def read_json_lines(stream: BufferedReader, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Blank lines are passed over; a line that is not JSON becomes a problem."""
    first = True
    for number, line in read_lines(stream, problems):
        if line.isspace():
            continue
        begun, first = first, False
        if begun and line.rstrip().endswith(_GOES_ON):
            problems.add(
                number,
                "one JSON object over several lines, where each line should be a row",
                "write a row on each line, or all rows as one array: [ {…}, {…} ]",
            )
            return
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

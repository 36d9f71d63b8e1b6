"""CSV and TSV with a header line. Every value is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import BufferedReader

from training_data.problems import Problems
from training_data.readers.lines import LONGEST_ROW_BYTES, read_lines

_DELIMITERS = ",;\t|"


def read_delimited(
    stream: BufferedReader, problems: Problems
) -> Iterator[tuple[int, dict[str, str]]]:
    """Records with the line each begins on; a quoted field may hold line breaks.

    The delimiter is the one of `, ; tab |` that the header has most of.
    """
    # One setting for the whole process; its default refuses fields over 128 KiB.
    csv.field_size_limit(LONGEST_ROW_BYTES)
    place = _Place(read_lines(stream, problems))
    header_line = next(place, None)
    if header_line is None:
        return
    delimiter = max(_DELIMITERS, key=header_line.count)
    rows = csv.reader(place.again(header_line), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place.begin_row()
        try:
            row = next(rows, None)
        except csv.Error as error:
            problems.add(
                place.row_line,
                f"broken CSV: {error}",
                'put fields with quotes, delimiters or line breaks in "…", quotes doubled',
            )
            continue
        if row is None:
            return
        if header is None:
            header = [name.strip() for name in row]
            if not _usable(header, problems):
                return
        elif len(row) == len(header):
            yield place.row_line, dict(zip(header, row, strict=True))
        elif row:
            problems.add(
                place.row_line,
                f"{len(row)} fields, where the header has {len(header)}",
                'put a field that holds the delimiter or a line break in "…"',
            )


class _Place:
    """Lines for the csv module, which pulls as many as a record needs; remembers where it is."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._pushed: str | None = None
        self._line = 0
        self._row_begun = False
        self.row_line = 0

    def begin_row(self) -> None:
        self._row_begun = False

    def again(self, line: str) -> _Place:
        self._pushed = line
        return self

    def __iter__(self) -> _Place:
        return self

    def __next__(self) -> str:
        if self._pushed is not None:
            text, self._pushed = self._pushed, None
        else:
            self._line, text = next(self._lines)
        if not self._row_begun:
            self.row_line, self._row_begun = self._line, True
        return text


def _usable(header: list[str], problems: Problems) -> bool:
    doubled = sorted({name for name in header if header.count(name) > 1})
    if "" in header or doubled:
        what = f"two columns are called {doubled[0]!r}" if doubled else "a column has no name"
        problems.add(1, what, "give every column a name of its own in the first line")
        return False
    return True

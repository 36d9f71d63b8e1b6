"""A JSON file that is one array of objects, read an element at a time.

`json.load` would hold the whole file; ijson would stream it but knows no line numbers, which
people need to mend a file. So the standard decoder runs over a window of the text that grows
only until one element is whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from training_data.problems import Problems
from training_data.readers.lines import LONGEST_ROW_BYTES, TOO_LONG, TOO_LONG_REMEDY

_SPACE = " \t\r\n"
# An error this near to the window's end may only mean that the element goes on behind it.
_NEAR_END = 16


class _Window:
    """The undecoded rest of the file's text from `position` on, and the line it stands at."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def grow(self) -> bool:
        """Twice the text that is left, or False at the end of the file. May raise UnicodeError."""
        if self.ended:
            return False
        data = self._stream.read(max(1 << 16, len(self.text) - self.position))
        decoded = self._decoder.decode(data, final=not data)
        if not data:
            # The text stays as it is: an error found in it tells its place by this position.
            self.ended = True
            return False
        self.text = self.text[self.position :] + decoded
        self.position = 0
        return True

    def move(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def line_of(self, position: int) -> int:
        return self.line + self.text.count("\n", self.position, position)

    def skip_space(self) -> str:
        """The next character that is not white space, '' at the end of the file."""
        while True:
            position = self.position
            while position < len(self.text) and self.text[position] in _SPACE:
                position += 1
            self.move(position)
            if position < len(self.text):
                return self.text[position]
            if not self.grow():
                return ""


def read_json_array(stream: BufferedReader, problems: Problems) -> Iterator[tuple[int, Any]]:
    """The array's elements with the line each begins on. What follows broken JSON is not read."""
    window = _Window(stream)
    try:
        yield from _elements(window, problems)
    except UnicodeDecodeError as error:
        line = window.line_of(len(window.text)) + error.object.count(b"\n", 0, error.start)
        what = f"not UTF-8: byte 0x{error.object[error.start]:02x}"
        problems.add(line, what, "save the file as UTF-8, e.g. iconv -f latin1 -t utf-8")


def _elements(window: _Window, problems: Problems) -> Iterator[tuple[int, Any]]:
    window.skip_space()
    window.move(window.position + 1)  # the bracket that made this file an array
    if window.skip_space() == "]":
        return
    decoder = json.JSONDecoder()
    while True:
        line = window.line
        try:
            value = _element(window, decoder)
        except json.JSONDecodeError as error:
            _note(error, window, problems)
            return
        except (ValueError, RecursionError) as error:
            problems.add(line, f"unreadable JSON: {error}", "write it as plain text fields")
            return
        yield line, value
        following = window.skip_space()
        if following == "]":
            return
        if following != ",":
            what = "the array is not closed" if not following else "a comma is missing"
            problems.add(window.line, what, "write [ {…}, {…} ], or one object per line")
            return
        window.move(window.position + 1)
        window.skip_space()


def _element(window: _Window, decoder: json.JSONDecoder) -> Any:
    """The next whole element. Raises JSONDecodeError, also for one that is too long."""
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.position)
        except json.JSONDecodeError as error:
            cut_off = error.pos + _NEAR_END >= len(window.text) or "Unterminated" in error.msg
            too_long = len(window.text) - window.position > LONGEST_ROW_BYTES
            if too_long or not cut_off or not window.grow():
                raise
        else:
            # A number or word at the very end may go on in the next piece.
            if end < len(window.text) or not window.grow():
                window.move(end)
                return value


def _note(error: json.JSONDecodeError, window: _Window, problems: Problems) -> None:
    if len(window.text) - window.position > LONGEST_ROW_BYTES:
        problems.add(window.line, TOO_LONG, TOO_LONG_REMEDY)
    else:
        problems.add(
            window.line_of(min(error.pos, len(window.text))),
            f"broken JSON: {error.msg}",
            "mend the array here; nothing after it could be read",
        )

"""Lines of a text file with their numbers: bounded in length, UTF-8, a byte-order mark dropped."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader

from training_data.problems import Problems

# A row longer than this is no row for fine-tuning: 8 MiB is some two million tokens. The bound
# keeps one endless line from filling the memory (decoded and parsed it takes several times this).
LONGEST_ROW_BYTES = 8 << 20
TOO_LONG = f"a row over {LONGEST_ROW_BYTES >> 20} MiB"
TOO_LONG_REMEDY = "split it into shorter rows; is the file one JSON object per line?"

_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(stream: BufferedReader, problems: Problems) -> Iterator[tuple[int, str]]:
    """Every line but those that cannot be decoded or are too long, which become problems."""
    number = 0
    while raw := stream.readline(LONGEST_ROW_BYTES + 1):
        number += 1
        if number == 1:
            if raw.startswith(_OTHER_MARKS):
                problems.add(1, "the file is UTF-16, not UTF-8", "save it again as UTF-8")
                return
            raw = raw.removeprefix(_UTF8_MARK)
        if len(raw) > LONGEST_ROW_BYTES and not raw.endswith(b"\n"):
            problems.add(number, TOO_LONG, TOO_LONG_REMEDY)
            _skip_line(stream)
            continue
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            problems.add(
                number,
                f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}",
                "save the file as UTF-8, e.g. iconv -f latin1 -t utf-8",
            )


def _skip_line(stream: BufferedReader) -> None:
    while piece := stream.readline(1 << 16):
        if piece.endswith(b"\n"):
            return

"""Every file format: its records with the lines they stand on, and what is wrong with a file."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError, InputError
from training_data.locations import FileSet, locate
from training_data.problems import Problems
from training_data.readers import json_array as json_array_reader
from training_data.readers import lines
from training_data.readers.delimited import read_delimited
from training_data.readers.json_array import read_json_array
from training_data.readers.json_lines import read_json_lines
from training_data.sources import FileData
from training_data.watch import Watch

ROWS = [{"prompt": "a\nb", "completion": "ä €"}, {"prompt": "c", "completion": "d"}]


def read(
    path: Path, *, wanted: frozenset[str] = frozenset()
) -> tuple[list[tuple[int, Any]], Problems]:
    problems = Problems(limit=50)
    found = locate(str(path), splits=("train",), revision=None)
    assert isinstance(found, FileSet)
    data = FileData(found.files, Watch())
    return list(data.records(problems, wanted, path.parent)), problems


def told(problems: Problems) -> list[tuple[int, str]]:
    return [(problem.line, problem.what) for problem in problems.listed]


def json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_arrow(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


CSV = 'prompt,completion\n"a\nb",ä €\nc,d\n'.encode()


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("rows.jsonl", json_lines(ROWS), [1, 2]),
        ("rows.jsonl", b"\xef\xbb\xbf" + json_lines(ROWS), [1, 2]),
        ("rows.jsonl", json_lines(ROWS).replace(b"\n", b"\r\n\r\n", 1), [1, 3]),
        ("rows.json", json_lines(ROWS), [1, 2]),
        ("rows.json", json.dumps(ROWS, indent=2).encode(), [2, 6]),
        ("rows.json", json.dumps(ROWS).encode(), [1, 1]),
        ("rows.csv", CSV, [2, 4]),
        ("rows.csv", b"\xef\xbb\xbf" + CSV, [2, 4]),
        ("rows.tsv", CSV.replace(b",", b"\t"), [2, 4]),
        ("rows.csv", CSV.replace(b",", b";"), [2, 4]),
        ("rows.parquet", as_parquet(ROWS), [1, 2]),
        ("rows.arrow", as_arrow(ROWS), [1, 2]),
        ("rows.jsonl.gz", gzip.compress(json_lines(ROWS), mtime=0), [1, 2]),
        ("rows.csv.bz2", bz2.compress(CSV), [2, 4]),
        ("rows.jsonl.xz", lzma.compress(json_lines(ROWS)), [1, 2]),
        ("rows.jsonl.zst", pa.compress(json_lines(ROWS), "zstd", asbytes=True), [1, 2]),
        # By content, where the name says nothing or the wrong thing.
        ("rows", json_lines(ROWS), [1, 2]),
        ("rows.txt", json.dumps(ROWS).encode(), [1, 1]),
        ("rows.dat", CSV, [2, 4]),
        ("rows.bin", as_parquet(ROWS), [1, 2]),
        ("rows.jsonl", json.dumps(ROWS).encode(), [1, 1]),
        ("rows", gzip.compress(json_lines(ROWS), mtime=0), [1, 2]),
    ],
)
def test_every_format_gives_the_same_records(
    tmp_path: Path, name: str, content: bytes, numbers: list[int]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    records, problems = read(path)
    assert [record for _, record in records] == ROWS
    assert [line for line, _ in records] == numbers
    assert told(problems) == []


def test_wrong_lines_of_json_lines_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    nested = "[" * 100_000
    path.write_bytes(
        b'{"a": 1}\n{"a": \n\n{"a": "\xff"}\n{"a": 2} x\n' + nested.encode() + b'\n{"a": 3}\n'
    )
    records, problems = read(path)
    assert [line for line, _ in records] == [1, 7]
    lines_told = told(problems)
    assert [line for line, _ in lines_told] == [2, 4, 5, 6]
    for (_, what), part in zip(
        lines_told,
        ("Expecting value", "byte 0xff at position 8", "Extra data", "unreadable"),
        strict=True,
    ):
        assert part in what


def test_an_object_over_several_lines_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": ROWS}, indent=1))
    records, problems = read(path)
    assert records == []
    assert [line for line, _ in told(problems)] == [1]
    assert "over several lines" in told(problems)[0][1]


def test_problems_are_listed_to_a_limit_and_counted_beyond(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + "broken\n" * 120)
    _, problems = read(path)
    assert (len(problems.listed), problems.count) == (50, 120)
    with pytest.raises(DataError, match="… and 70 more") as raised:
        problems.raise_any("rows.jsonl")
    assert raised.value.record()["problem_count"] == 120


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="empty"):
        read(path)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0weights")
    with pytest.raises(InputError, match="no kind of file"):
        read(path)


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": 1}\n'.encode("utf-16"))
    assert told(read(path)[1]) == [(1, "the file is UTF-16, not UTF-8")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_one_endless_row_is_refused_and_does_not_fill_the_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_ROW_BYTES", 1 << 17)
    monkeypatch.setattr(json_array_reader, "LONGEST_ROW_BYTES", 1 << 17)
    row = json.dumps({"text": "x" * (1 << 20)})
    path = tmp_path / name
    path.write_text(f"[{row}]" if name == "rows.json" else f'{row}\n{{"text": "y"}}\n')
    records, problems = read(path)
    assert [line for line, _ in told(problems)] == [1]
    assert "MiB" in told(problems)[0][1]
    assert len(records) == (0 if name == "rows.json" else 1)


@pytest.mark.parametrize(
    ("content", "line", "what", "rows"),
    [
        ('[\n{"a": 1},\n{"a" 2}\n]', 3, "broken JSON", 1),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3, "a comma is missing", 1),
        ('[\n{"a": 1},\n{"a": 2}\n', 4, "the array is not closed", 2),
        ('[\n{"a": 1},\n]', 3, "broken JSON", 1),
        ('[{"a": "open', 1, "broken JSON", 0),
    ],
)
def test_broken_arrays(tmp_path: Path, content: str, line: int, what: str, rows: int) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    records, problems = read(path)
    assert [number for number, _ in told(problems)] == [line]
    assert what in told(problems)[0][1]
    assert len(records) == rows


def test_bytes_that_are_not_utf8_in_an_array_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'[\n{"a": 1},\n{"a": "\xe4"}\n]')
    assert told(read(path)[1]) == [(3, "not UTF-8: byte 0xe4")]


class _Dribble(io.RawIOBase):
    """Gives a few bytes at a time, so that elements are cut anywhere."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self.content = content
        self.sizes = sizes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = self.sizes.pop() if self.sizes else 7
        data, self.content = self.content[:size], self.content[size:]
        buffer[: len(data)] = data
        return len(data)


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        max_size=6,
    ),
    st.sampled_from([None, 1]),
    st.lists(st.integers(1, 9), max_size=50),
)
def test_an_array_is_read_the_same_however_it_is_cut(
    rows: list[Any], indent: int | None, sizes: list[int]
) -> None:
    problems = Problems(limit=5)
    content = json.dumps(rows, indent=indent, ensure_ascii=False).encode(errors="surrogatepass")
    if b"\xed" in content:  # half a surrogate pair, which no file in UTF-8 holds
        content = json.dumps(rows, indent=indent).encode()
    # A buffer of one byte: each read of the window goes down to the dribble.
    stream: Any = io.BufferedReader(cast(Any, _Dribble(content, sizes)), 1)
    assert [record for _, record in read_json_array(stream, problems)] == rows
    assert problems.count == 0


@given(st.binary(max_size=300))
def test_no_bytes_at_all_break_a_reader(content: bytes) -> None:
    readers: list[Callable[..., Any]] = [read_json_lines, read_json_array, read_delimited]
    for reader in readers:
        stream = io.BufferedReader(cast(io.RawIOBase, io.BytesIO(b"[" + content)))
        list(reader(stream, Problems(limit=3)))


def test_wrong_csv_rows_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n1,2,3\n"x"y,2\n\n3,4\n"open,5\n6,7\n')
    records, problems = read(path)
    assert records == [(2, {"a": "1", "b": "2"}), (6, {"a": "3", "b": "4"})]
    assert [line for line, _ in told(problems)] == [3, 4, 7]
    assert "3 fields, where the header has 2" in told(problems)[0][1]


@pytest.mark.parametrize(("header", "what"), [("a,a", "two columns"), ("a,", "has no name")])
def test_unusable_headers(tmp_path: Path, header: str, what: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n1,2\n")
    records, problems = read(path)
    assert records == []
    assert what in told(problems)[0][1]


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")  # the csv module stops at 131,072 by itself
    assert len(read(path)[0][0][1]["text"]) == 200_000


def test_only_wanted_columns_of_a_parquet_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"], "image": [b"\0" * 100]}), path)
    assert read(path, wanted=frozenset({"text", "prompt"}))[0] == [(1, {"text": "a"})]
    assert set(read(path, wanted=frozenset({"prompt"}))[0][0][1]) == {"text", "image"}


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_cut_off_columnar_file_is_told(tmp_path: Path, name: str) -> None:
    content = as_parquet(ROWS * 500) if name == "rows.parquet" else as_arrow(ROWS * 500)
    path = tmp_path / name
    path.write_bytes(content[: len(content) // 2])
    assert "broken" in told(read(path)[1])[0][1]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_damaged_compressed_file_is_told(tmp_path: Path, suffix: str) -> None:
    plain = json_lines(ROWS) * 500
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
    }
    packed = pack[suffix](plain)
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    assert "damaged" in told(read(path)[1])[-1][1]


def test_memory_stays_flat_over_a_large_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.json"
    with path.open("w") as stream:
        stream.write("[" + ",".join(json.dumps({"text": "x" * 900}) for _ in range(20_000)) + "]")
    found = locate(str(path), splits=("train",), revision=None)
    assert isinstance(found, FileSet)
    data = FileData(found.files, Watch())
    tracemalloc.start()
    try:
        assert sum(1 for _ in data.records(Problems(limit=1), frozenset(), tmp_path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # the file has 18 MB

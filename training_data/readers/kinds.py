"""What kind of file it is: by its content where that is plain, by its name otherwise."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from enum import StrEnum
from typing import IO, Any, cast

from models.errors import DataError, InputError


class Kind(StrEnum):
    JSON_LINES = "jsonl"
    JSON_ARRAY = "json"
    DELIMITED = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ARROW_STREAM = b"\xff\xff\xff\xff"


def compression(head: bytes) -> str | None:
    return next((name for mark, name in _COMPRESSED.items() if head.startswith(mark)), None)


def decompressed(stream: IO[bytes], name: str | None) -> io.BufferedReader:
    """The stream's content, buffered; unpacked as it is read."""
    inner: Any = stream
    if name == "gzip":
        inner = gzip.GzipFile(fileobj=stream)
    elif name == "bzip2":
        inner = bz2.BZ2File(stream)
    elif name == "xz":
        inner = lzma.LZMAFile(stream)  # noqa: SIM115 - as above
    elif name == "zstd":
        # Python has zstd from 3.14 on only; pyarrow is here anyway.
        import pyarrow as pa

        inner = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
    return io.BufferedReader(cast(io.RawIOBase, inner), 1 << 16)


def kind_of(name: str, head: bytes) -> Kind:
    """The kind of a file from its name and first (unpacked) bytes.

    Content goes first: JSON Lines are often called `.json`, and arrays `.jsonl`.
    Raises DataError for an empty file, InputError for one that is nothing we read.
    """
    if head.startswith(b"PAR1"):
        return Kind.PARQUET
    if head.startswith(b"ARROW1") or (head.startswith(_ARROW_STREAM) and b"\x00" in head):
        return Kind.ARROW
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise DataError("the file is empty", where=name, remedy="give a file with rows in it")
    suffixes = name.lower().split(".")[1:]
    if {"csv", "tsv"} & set(suffixes):
        return Kind.DELIMITED
    if text.startswith(b"["):
        return Kind.JSON_ARRAY
    named_json = {"json", "jsonl", "ndjson"} & set(suffixes)
    if named_json or text.startswith(b"{"):
        return Kind.JSON_LINES
    first_line = text.partition(b"\n")[0]
    if b"\x00" not in head and any(mark in first_line for mark in (b",", b"\t", b";")):
        return Kind.DELIMITED
    raise InputError(
        "this is no kind of file that is read here",
        where=name,
        remedy="give JSON Lines, JSON, CSV, TSV or Parquet, plain or compressed (gz, bz2, xz, zst)",
    )

"""Which rows share a key, for more keys than fit into memory: spilled to disk, sorted by parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

_RECORD = np.dtype([("key", "<u8"), ("row", "<u4")])
_FLUSH_RECORDS = 1 << 16  # 768 KiB


class Buckets:
    """Keys with the rows they belong to, 12 bytes each on disk.

    A key's highest bits choose its part, so that equal keys meet in one; each part is small enough
    to be sorted in memory: with 64 parts 100 million keys are 19 MB a part. The keys of a few
    thousand rows never leave memory.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        """`parts` is a power of two."""
        self._folder = folder
        self._parts = parts
        self._shift = np.uint64(64 - (parts - 1).bit_length())
        self._stack = ExitStack()
        self._files: list[IO[bytes]] = []  # one for each part, once there are any
        self._waiting: list[Any] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, keys: Any, rows: Any) -> None:
        """64-bit keys, evenly spread, and the row of each."""
        records = np.empty(len(keys), _RECORD)
        records["key"], records["row"] = keys, rows
        self._waiting.append(records)
        self._count += len(records)
        if self._count >= _FLUSH_RECORDS:
            self._flush()

    def shared(self, look: Callable[[], None]) -> Iterator[tuple[Any, Any]]:
        """For each part: rows whose key another row has too, and where each key's rows begin.

        The rows of one key stand together, in the order they were added. Nothing is added after.
        """
        look()
        if not self._files:
            yield from _shared(self._collected())
            return
        self._flush()
        for file in self._files:
            look()
            file.seek(0)
            yield from _shared(np.fromfile(file, _RECORD))
            file.close()

    def _collected(self) -> Any:
        records = np.concatenate([np.empty(0, _RECORD), *self._waiting])
        self._waiting, self._count = [], 0
        return records

    def _flush(self) -> None:
        records = self._collected()
        if not self._files:
            # Without a name they are gone, whatever becomes of this process.
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files = [
                self._stack.enter_context(TemporaryFile(dir=self._folder, buffering=0))  # noqa: SIM115 (the stack closes it)
                for _ in range(self._parts)
            ]
        parts = (records["key"] >> self._shift).astype(np.int64)
        records = records[np.argsort(parts, kind="stable")]
        ends = np.cumsum(np.bincount(parts, minlength=self._parts))
        begin = 0
        for file, end in zip(self._files, ends, strict=True):
            file.write(records[begin:end].tobytes())
            begin = end


def _shared(records: Any) -> Iterator[tuple[Any, Any]]:
    keys = records["key"]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    shared = np.append(same, False) | np.append(False, same)
    if len(keys) and shared.any():
        begins = np.append(True, ~same)[shared]
        yield records["row"][order[shared]], np.flatnonzero(begins)

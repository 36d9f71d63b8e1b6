"""Which rows share a key, for more keys than fit into memory: spilled to disk, sorted by parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_RECORD = np.dtype([("key", "<u8"), ("row", "<u4")])
_FLUSH_RECORDS = 1 << 16  # 768 KiB


class Buckets:
    """Keys with the rows they belong to, 12 bytes each on disk.

    A key's highest bits choose its part, so that equal keys meet in one; each part is small enough
    to be sorted in memory: with 128 parts 100 million keys are 10 MB a part.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        self._shift = np.uint64(64 - (parts - 1).bit_length())
        self._paths = [folder / f"part-{number:03}" for number in range(parts)]
        folder.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self._files = [
            self._stack.enter_context(path.open("wb", buffering=0)) for path in self._paths
        ]
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
        self._flush()
        for path, file in zip(self._paths, self._files, strict=True):
            look()
            file.close()
            records = np.fromfile(path, _RECORD)
            path.unlink()
            keys = records["key"]
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            same = keys[1:] == keys[:-1]
            shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
            if len(keys) and shared.any():
                begins = ~np.concatenate([[False], same])[shared]
                yield records["row"][order[shared]], np.flatnonzero(begins)

    def _flush(self) -> None:
        if not self._waiting:
            return
        records = np.concatenate(self._waiting)
        parts = (records["key"] >> self._shift).astype(np.int64)
        records = records[np.argsort(parts, kind="stable")]
        ends = np.cumsum(np.bincount(parts, minlength=len(self._files)))
        begin = 0
        for file, end in zip(self._files, ends, strict=True):
            file.write(records[begin:end].tobytes())
            begin = end
        self._waiting, self._count = [], 0

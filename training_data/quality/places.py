"""Where rows stand, by their number: seven bytes each in a file, read again for the few shown."""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training_data.rows import Kept

_PLACE = struct.Struct("<IH?")


class Places:
    def __init__(self, folder: Path, *, own_data: bool) -> None:
        """`own_data`: held-out rows come from evaluation data of their own."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "places").open("w+b", buffering=1 << 16)
        self._own_data = own_data
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, kept: Kept) -> None:
        number = self._numbers.get(kept.file)
        if number is None:
            number = self._numbers[kept.file] = min(len(self._names), 0xFFFF)
            self._names.append(kept.file)
        self._file.write(_PLACE.pack(kept.line, number, kept.held_out and self._own_data))

    def of(self, row: int) -> dict[str, Any]:
        self._file.flush()
        self._file.seek(row * _PLACE.size)
        line, number, evaluation = _PLACE.unpack(self._file.read(_PLACE.size))
        return self._place(line, self._names[number], evaluation)

    def place(self, kept: Kept) -> dict[str, Any]:
        """As `of`, for a row at hand."""
        return self._place(kept.line, kept.file, kept.held_out and self._own_data)

    @staticmethod
    def _place(line: int, file: str, evaluation: bool) -> dict[str, Any]:  # noqa: FBT001 (a field's value)
        return {"data": "eval_dataset" if evaluation else "dataset", "file": file, "line": line}

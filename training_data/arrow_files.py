"""Writing token rows as Arrow stream files, which `datasets.Dataset.from_file` memory-maps."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training_data.arrow_arrays import int32_lists, strings
from training_data.tokenise import TokenRow

NO_LOSS = -100
# A record batch is written when it holds so many tokens: 512 KiB of ids and labels.
_BATCH_TOKENS = 1 << 16


class TokenWriter:
    """Collects rows and writes them in batches; labels are NO_LOSS outside a row's loss ranges.

    With `pairs` each row also has `rejected_ids` and `rejected_labels`.
    """

    def __init__(self, path: Path, *, held_out: bool, pairs: bool = False) -> None:
        import pyarrow as pa

        self._pa = pa
        ids = pa.list_(pa.int32())
        fields = [("input_ids", ids), ("labels", ids)]
        if held_out:
            fields += [("prompt_ids", ids), ("prompt", pa.string()), ("answer", pa.string())]
        if pairs:
            fields += [("rejected_ids", ids), ("rejected_labels", ids)]
        self._held_out, self._pairs = held_out, pairs
        self._schema = pa.schema(fields)
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[TokenRow] = []
        self._tokens = 0
        self.highest_id = -1
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of all held-out rows written so far: figures on equal digests can be compared."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                self._flush()
                self._writer.close()

    def add(self, row: TokenRow) -> None:
        self._rows.append(row)
        self._tokens += len(row.ids)
        if self._tokens >= _BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = self._tokens_and_labels(self._rows)
        if self._held_out:
            prompts, bounds = _joined([row.prompt_ids for row in self._rows])
            columns.append(int32_lists(bounds, prompts))
            columns.append(strings([row.prompt for row in self._rows]))
            columns.append(strings([row.answer for row in self._rows]))
            for numbers in (prompts, bounds):
                self._digest.update(numbers)
            for row in self._rows:
                self._digest.update(f"{row.prompt}\0{row.answer}\0".encode())
        if self._pairs:
            columns += self._tokens_and_labels([row.rejected for row in self._rows if row.rejected])
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))
        self._rows, self._tokens = [], 0

    def _tokens_and_labels(self, rows: list[TokenRow]) -> list[Any]:
        import numpy as np

        ids, offsets = _joined([row.ids for row in rows])
        known = np.frombuffer(ids, dtype=np.int32)
        self.highest_id = max(self.highest_id, int(known.max()))
        labels = np.full(len(ids), NO_LOSS, dtype=np.int32)
        for begin, row in zip(offsets, rows, strict=False):
            for start, end in row.loss:
                labels[begin + start : begin + end] = known[begin + start : begin + end]
        if self._held_out:
            self._digest.update(ids)
            self._digest.update(offsets)
            self._digest.update(labels.tobytes())
        return [int32_lists(offsets, ids), int32_lists(offsets, labels)]


def _joined(rows: list[array[int]]) -> tuple[array[int], array[int]]:
    """All rows in one, and the offsets that tell them apart."""
    flat, offsets = array("i"), array("i", [0])
    for row in rows:
        flat.extend(row)
        offsets.append(len(flat))
    return flat, offsets

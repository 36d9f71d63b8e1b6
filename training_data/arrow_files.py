"""Writing token rows as Arrow stream files, which `datasets.Dataset.from_file` memory-maps."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training_data.tokenise import TokenRow

NO_LOSS = -100
# A record batch is written when it holds so many tokens: 2 MiB of ids and labels.
_BATCH_TOKENS = 1 << 18


class TokenWriter:
    """Collects rows and writes them in batches; labels are NO_LOSS outside a row's loss ranges."""

    def __init__(self, path: Path, *, held_out: bool) -> None:
        import pyarrow as pa

        self._pa = pa
        ids = pa.list_(pa.int32())
        fields = [("input_ids", ids), ("labels", ids)]
        if held_out:
            fields += [("prompt_ids", ids), ("prompt", pa.string()), ("answer", pa.string())]
        self._held_out = held_out
        self._schema = pa.schema(fields)
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[TokenRow] = []
        self._tokens = 0

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
        import numpy as np

        flat: list[int] = []
        offsets = [0]
        ranges = []
        for row in self._rows:
            begin = len(flat)
            flat += row.ids
            offsets.append(len(flat))
            ranges += [(begin + start, begin + end) for start, end in row.loss]
        ids = np.array(flat, dtype=np.int32)
        labels = np.full(len(flat), NO_LOSS, dtype=np.int32)
        for start, end in ranges:
            labels[start:end] = ids[start:end]
        columns = [self._lists(offsets, ids), self._lists(offsets, labels)]
        if self._held_out:
            prompts = [row.ids[: row.prompt_tokens] for row in self._rows]
            columns.append(self._pa.array(prompts, self._schema.field("prompt_ids").type))
            columns.append(self._pa.array([row.prompt for row in self._rows]))
            columns.append(self._pa.array([row.answer for row in self._rows]))
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))
        self._rows, self._tokens = [], 0

    def _lists(self, offsets: list[int], values: Any) -> Any:
        return self._pa.ListArray.from_arrays(
            self._pa.array(offsets, self._pa.int32()), self._pa.array(values)
        )

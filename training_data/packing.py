"""Several rows in one sequence: best fit decreasing over a window of rows, in flat memory.

TRL's own packing works on a loaded data set; its `wrapped` strategy runs documents into each
other. Only `bfd` keeps them apart, with a `seq_lengths` column that attention follows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data.arrow_arrays import as_numpy, int32_lists
from training_data.arrow_files import NO_LOSS

# Rows that are packed among themselves: more would fill the last packs of a window no better
# than by a percent, and would have to be held in memory.
_WINDOW_ROWS = 4096
_WINDOW_TOKENS = 1 << 20


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs of row numbers, each of at most `capacity` tokens in all.

    The longest row goes first, each into the fullest pack that still takes it. No length may be
    over `capacity`.
    """
    packs: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (room left, pack), sorted
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        place = bisect_left(spaces, (length, -1))
        if place < len(spaces):
            room, pack = spaces.pop(place)
        else:
            room, pack = capacity, len(packs)
            packs.append([])
        packs[pack].append(row)
        if room > length:
            insort(spaces, (room - length, pack))
    return packs


def pack_file(source: Path, target: Path, capacity: int, look: Callable[[], None]) -> int:
    """Pack the rows of one Arrow file into another; the number of packs."""
    import pyarrow as pa

    lists = pa.list_(pa.int32())
    schema = pa.schema([("input_ids", lists), ("labels", lists), ("seq_lengths", lists)])
    written = 0
    with source.open("rb") as read, target.open("wb") as write:
        writer = pa.ipc.new_stream(write, schema)
        for window in _windows(pa.ipc.open_stream(read)):
            look()
            packed = _packed(window, capacity)
            writer.write_batch(pa.record_batch(packed, schema=schema))
            written += len(packed[0])
        writer.close()
    return written


@dataclass(slots=True)
class _Window:
    """Rows one after another; `starts` has one entry more than there are rows."""

    ids: Any
    labels: Any
    starts: Any


def _windows(batches: Iterable[Any]) -> Iterator[_Window]:
    """Whole record batches joined until there are rows or tokens enough."""
    held: list[Any] = []
    rows = tokens = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        tokens += len(batch.column("input_ids").values)
        if rows >= _WINDOW_ROWS or tokens >= _WINDOW_TOKENS:
            yield _joined(held)
            held, rows, tokens = [], 0, 0
    if held:
        yield _joined(held)


def _joined(batches: list[Any]) -> _Window:
    import numpy as np

    columns = [(batch.column("input_ids"), batch.column("labels")) for batch in batches]
    lengths = [np.diff(as_numpy(ids.offsets)) for ids, _ in columns]
    return _Window(
        np.concatenate([as_numpy(ids.values) for ids, _ in columns]),
        np.concatenate([as_numpy(labels.values) for _, labels in columns]),
        np.concatenate([[0], *lengths]).cumsum(),
    )


def _packed(window: _Window, capacity: int) -> list[Any]:
    """The columns input_ids, labels and seq_lengths of one window's packs."""
    import numpy as np

    starts = window.starts
    lengths = np.diff(starts)
    packs = best_fit_decreasing(lengths.tolist(), capacity)
    order = [row for pack in packs for row in pack]
    rows = [slice(starts[row], starts[row + 1]) for row in order]
    # In a row of its own the first token is never predicted; in a pack it would be, from the last
    # token of another document.
    window.labels[starts[:-1]] = NO_LOSS
    packed_lengths = lengths[order].astype(np.int32)
    bounds = np.cumsum([0, *map(len, packs)], dtype=np.int32)
    token_bounds = np.concatenate([[0], packed_lengths.cumsum()])[bounds].astype(np.int32)
    return [
        int32_lists(token_bounds, np.concatenate([window.ids[row] for row in rows])),
        int32_lists(token_bounds, np.concatenate([window.labels[row] for row in rows])),
        int32_lists(bounds, packed_lengths),
    ]

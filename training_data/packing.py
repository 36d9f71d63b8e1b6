"""Several rows in one sequence: best fit decreasing over a window of rows, in flat memory.

TRL's own packing works on a loaded data set; its `wrapped` strategy runs documents into each
other. Only `bfd` keeps them apart, with a `seq_lengths` column that attention follows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training_data.arrow_files import NO_LOSS

# Rows that are packed among themselves: more would fill the last packs of a window no better
# than by a percent, and would have to be held in memory.
_WINDOW_ROWS = 4096
_WINDOW_TOKENS = 1 << 21


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


def _windows(batches: Any) -> Iterator[Any]:
    """Whole record batches joined until there are rows or tokens enough."""
    import pyarrow as pa

    held: list[Any] = []
    rows = tokens = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        tokens += len(batch.column(0).values)
        if rows >= _WINDOW_ROWS or tokens >= _WINDOW_TOKENS:
            yield pa.Table.from_batches(held).combine_chunks()
            held, rows, tokens = [], 0, 0
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def _packed(window: Any, capacity: int) -> list[Any]:
    import numpy as np
    import pyarrow as pa

    ids, labels = (window.column(name).chunk(0) for name in ("input_ids", "labels"))
    lengths = np.diff(ids.offsets.to_numpy())
    packs = best_fit_decreasing(lengths.tolist(), capacity)
    order = pa.array([row for pack in packs for row in pack], pa.int32())
    ids, labels = ids.take(order), labels.take(order)
    starts = ids.offsets.to_numpy()
    ends_of_packs = np.cumsum([0, *(len(pack) for pack in packs)], dtype=np.int32)
    learnt = labels.values.to_numpy().copy()
    # In a row of its own the first token is never predicted; in a pack it would be, from the last
    # token of another document.
    learnt[starts[:-1]] = NO_LOSS
    bounds = pa.array(starts[ends_of_packs], pa.int32())
    return [
        pa.ListArray.from_arrays(bounds, ids.values),
        pa.ListArray.from_arrays(bounds, pa.array(learnt)),
        pa.ListArray.from_arrays(
            pa.array(ends_of_packs), pa.array(np.diff(starts).astype(np.int32))
        ),
    ]

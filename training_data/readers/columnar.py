"""Parquet files, and the Arrow files of a folder that `datasets` saved. Lines are row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from training_data.problems import Problems

# Few rows at a time: a row may be long, and each becomes Python objects.
_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 18


def read_parquet(
    stream: IO[bytes], problems: Problems, wanted: frozenset[str]
) -> Iterator[tuple[int, Any]]:
    """Rows with the wanted columns only, where the file has any of them.

    A file may carry images or vectors beside its text, which would fill the memory for nothing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A buffered read of pages; pre_buffer would load whole row groups.
        file = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        columns = [name for name in file.schema_arrow.names if name in wanted] or None
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
        yield from _rows(batches)
    except (pa.ArrowException, OSError) as error:
        problems.add(0, f"broken Parquet: {_first_line(error)}", "write the file again")


def read_arrow(
    stream: IO[bytes], problems: Problems, wanted: frozenset[str]
) -> Iterator[tuple[int, Any]]:
    """Rows of an Arrow stream file, or of an Arrow file with a footer.

    Read, not memory-mapped: mapped pages count as the process's memory until they are dropped.
    """
    import pyarrow as pa

    try:
        if stream.read(6) == b"ARROW1":
            file = pa.ipc.open_file(stream)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            stream.seek(0)
            batches = iter(pa.ipc.open_stream(stream))
        yield from _rows(_narrowed(batch, wanted) for batch in batches)
    except (pa.ArrowException, OSError) as error:
        problems.add(0, f"broken Arrow file: {_first_line(error)}", "save the data set again")


def _narrowed(batch: Any, wanted: frozenset[str]) -> Any:
    names = [name for name in batch.schema.names if name in wanted]
    return batch.select(names) if names else batch


def _rows(batches: Any) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for record in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                yield number, record


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

"""A first look at an uploaded file, so that a bad row is told at once and not when a job reads it.

What is small is looked at in the caller's thread. Reading a large file keeps a core busy for a
while: it happens in a process of its own, or every other request would wait for its turns. It ends
after a while, for somebody waits for the answer: what is left of the file the job looks at.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from models.errors import DataError, InputError, RowProblem

_SMALL_BYTES = 2 * 1024**2
_LONGEST_SECONDS = 120.0
_MENDING = "mend the lines and upload the file again"
_NAMING = "where columns have other names, say which plays which part in `columns`"


def require_rows(path: Path, columns: dict[str, str]) -> None:
    """Raise DataError, with lines, for a file that cannot be trained on. It has to be JSON Lines.

    `columns` as in JobSpec, for rows of no usual shape. Nothing is unpacked: a compressed file is
    refused like any other that is no text.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"{"):
        what = "the file is empty" if not start else "the file is not JSON Lines"
        raise DataError(
            what, where="file", remedy="upload rows of JSON, one object a line, not compressed"
        )
    if path.stat().st_size <= _SMALL_BYTES:
        found = problems_of(str(path), columns)
    else:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(problems_of, str(path), columns).result()
    if found is not None:
        what, listed, count = found
        remedy = _MENDING if count else _NAMING if "the columns are" in what else None
        raise DataError(what, where="file", remedy=remedy, problems=listed, problem_count=count)


def problems_of(
    path: str, columns: dict[str, str]
) -> tuple[str, tuple[RowProblem, ...], int] | None:
    """What is wrong, the rows listed and how many there are; none when all was well so far."""
    from training_data.access import Access, reading_as
    from training_data.validate import validate
    from training_data.watch import PreparationStopped

    ends = time.monotonic() + _LONGEST_SECONDS
    with reading_as(Access(files_url=str(Path(path).parent))):
        try:
            report = validate(
                path,
                columns=columns,
                method=_method(path, columns),
                should_stop=lambda: time.monotonic() > ends,
            )
        except PreparationStopped:
            return None
        except InputError as error:  # of the file as a whole; where it lies is nobody's business
            return "; ".join(filter(None, (error.what, error.remedy))), (), 0
    return None if report.error is None else (report.error, report.problems, report.problem_count)


def _method(path: str, columns: dict[str, str]) -> str:
    """What the rows are for, which an upload does not say: preference pairs are for dpo alone."""
    from training_data.formats.shapes import are_pairs
    from training_data.problems import Problems
    from training_data.readers.lines import read_lines

    with Path(path).open("rb") as file:
        for _, line in read_lines(file, Problems()):
            with suppress(ValueError, RecursionError):
                return "dpo" if are_pairs(json.loads(line), columns) else "lora"
    return "lora"

"""A data set as a stream of (line, record), from files or the hub, and the digest of its bytes."""

from __future__ import annotations

import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training_data.files import DataFile, DigestingReader, digest_file, held_still
from training_data.hub import HubData
from training_data.locations import FileSet, SourceCheck, locate
from training_data.problems import Problems
from training_data.readers.columnar import read_arrow, read_parquet
from training_data.readers.delimited import read_delimited
from training_data.readers.json_array import read_json_array
from training_data.readers.json_lines import read_json_lines
from training_data.readers.kinds import Kind, compression, decompressed, kind_of
from training_data.watch import Watch

Record = tuple[int, Any]


class FileData:
    """A data set that lies in files. `digest` is known once `records` is used up."""

    def __init__(self, files: tuple[DataFile, ...], watch: Watch) -> None:
        self.files = files
        self._watch = watch
        self._digests: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """sha256 of the bytes read: the file's, or of the list that `sha256sum` would print."""
        return _joined(self._digests)

    def digest_now(self) -> str:
        """The same digest from a reading of its own, without parsing."""
        return _joined({file.name: digest_file(file, self._watch.look) for file in self.files})

    def records(
        self, problems: Problems, wanted: frozenset[str], scratch: Path
    ) -> Iterator[Record]:
        """All records in order. Raises InputError, DataError (an empty file), UnavailableError."""
        several = len(self.files) > 1
        for file in self.files:
            problems.file = file.name if several else ""
            yield from self._records_of(file, problems, wanted, scratch)
        problems.file = ""

    def _records_of(
        self, file: DataFile, problems: Problems, wanted: frozenset[str], scratch: Path
    ) -> Iterator[Record]:
        head = file.head()
        packing = compression(head)
        if kind := _random_access(file.name, head):
            read = read_parquet if kind is Kind.PARQUET else read_arrow
            with held_still(file, scratch, self._watch.look) as (stream, digest):
                self._digests[file.name] = digest
                yield from read(stream, problems, wanted)
            return
        with file.open() as inner:
            digesting = DigestingReader(file, inner, self._watch.look)
            buffered = io.BufferedReader(digesting, 1 << 16)
            yield from _parsed(file.name, decompressed(buffered, packing), problems)
            self._digests[file.name] = digesting.finish()


def _random_access(name: str, head: bytes) -> Kind | None:
    if compression(head) is not None or not head:
        return None
    kind = kind_of(name, head)
    return kind if kind in (Kind.PARQUET, Kind.ARROW) else None


def _parsed(name: str, stream: io.BufferedReader, problems: Problems) -> Iterator[Record]:
    try:
        kind = kind_of(name, stream.peek(4096))
        if kind is Kind.JSON_ARRAY:
            yield from read_json_array(stream, problems)
        elif kind is Kind.DELIMITED:
            yield from read_delimited(stream, problems)
        else:
            yield from read_json_lines(stream, problems)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # gzip, bz2, lzma and pyarrow all end here when their input is cut off or damaged.
        problems.add(0, f"the compressed file is damaged: {error}", "compress or copy it again")


def _joined(digests: dict[str, str]) -> str:
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def open_data(
    dataset: str,
    *,
    splits: tuple[str, ...],
    revision: str | None,
    watch: Watch,
    source_check: SourceCheck | None = None,
) -> FileData | HubData:
    """Find a data set; nothing is read yet. Raises InputError, UnavailableError."""
    found = locate(dataset, splits=splits, revision=revision, source_check=source_check)
    if isinstance(found, FileSet):
        return FileData(found.files, watch)
    return HubData(found, watch)

"""One file of a data set, on this machine or behind a URL: opened once, digested as it is read."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from models.errors import CeloraError, InputError, UnavailableError

# Small enough that a stop request is looked for often, large enough that Python's part is nothing.
CHUNK_BYTES = 1 << 16

Look = Callable[[], None]


@dataclass(frozen=True, slots=True)
class DataFile:
    """`name` is what people know it by; `path` is absolute, or a path inside `filesystem`."""

    name: str
    path: str
    filesystem: Any = None  # an fsspec filesystem; None: this machine's

    @property
    def remote(self) -> bool:
        return self.filesystem is not None

    def open(self) -> IO[bytes]:
        """The file's bytes, unbuffered. Raises InputError, UnavailableError."""
        with explained(self.name, remote=self.remote):
            if self.filesystem is None:
                return _open_regular(self.path)
            return cast(IO[bytes], self.filesystem.open(self.path, "rb"))

    def head(self, size: int = 4096) -> bytes:
        with self.open() as stream, explained(self.name, remote=self.remote):
            return stream.read(size)


def _open_regular(path: str) -> IO[bytes]:
    """Open a plain file; never a pipe or device, on which a worker would hang.

    The path was resolved and allowed; O_NOFOLLOW refuses a link put in its place since.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("not a plain file", where=path, remedy="give a file or a folder of files")
    return os.fdopen(descriptor, "rb", buffering=0)


class DigestingReader(io.RawIOBase):
    """Passes a file's bytes on and digests them: the digest is of the very bytes that were used."""

    def __init__(self, file: DataFile, inner: IO[bytes], look: Look) -> None:
        self._file = file
        self._inner = inner
        self._look = look
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._look()
        with explained(self._file.name, remote=self._file.remote):
            # read(), not readinto(): several of fsspec's files have only the former.
            data = self._inner.read(min(len(buffer), CHUNK_BYTES))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> str:
        """sha256 of the whole file in hex; reads the rest where a parser stopped early."""
        scrap = bytearray(CHUNK_BYTES)
        while self.readinto(scrap):
            pass
        return self._digest.hexdigest()


def digest_file(file: DataFile, look: Look) -> str:
    with file.open() as stream:
        return DigestingReader(file, stream, look).finish()


@contextmanager
def held_still(file: DataFile, scratch: Path, look: Look) -> Iterator[tuple[IO[bytes], str]]:
    """A file for random access, and its digest, which is of the bytes that will be read.

    A remote file is copied into `scratch` first: reads by range could each see another version.
    A local one is compared before and after. Raises InputError when it was changed.
    """
    with file.open() as source:
        if file.remote:
            with tempfile.TemporaryFile(dir=scratch) as copy:
                reader = DigestingReader(file, source, look)
                shutil.copyfileobj(cast(IO[bytes], reader), copy, CHUNK_BYTES)
                copy.seek(0)
                yield copy, reader.finish()
            return
        before = _version(source)
        digest = DigestingReader(file, source, look).finish()
        source.seek(0)
        yield source, digest
        if _version(source) != before:
            raise InputError(
                "the file was changed while it was read",
                where=file.name,
                remedy="wait until it is written, then submit again",
            )


def _version(stream: IO[bytes]) -> tuple[int, int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def explained(where: str, *, remote: bool) -> Iterator[None]:
    """Turn what a file system raises into our errors: InputError or UnavailableError."""
    try:
        yield
    except CeloraError:
        raise
    except FileNotFoundError:
        raise InputError(
            "there is no such file", where=where, remedy="check the path as the cpu worker sees it"
        ) from None
    except PermissionError:
        raise InputError(
            "the file may not be read",
            where=where,
            remedy="give the cpu worker's user the right to read it, or check the credentials",
        ) from None
    except ImportError as error:
        raise InputError(
            f"this kind of URL needs a package that is not installed: {error}",
            where=where,
            remedy="install it on the cpu worker, or copy the data to a folder that it can read",
        ) from None
    except Exception as error:
        if remote:
            # Every remote file system has exceptions of its own, botocore's derived from
            # Exception alone: nothing narrower catches a store that cannot be reached.
            raise UnavailableError(
                f"the data could not be read: {type(error).__name__}: {error}",
                where=where,
                remedy="check the address, the network and the credentials of the cpu worker",
            ) from error
        if isinstance(error, (OSError, ValueError)):  # ValueError: a null byte in a path
            reason = error.strerror if isinstance(error, OSError) else None
            raise InputError(
                f"the file cannot be read: {reason or error}",
                where=where,
                remedy="check the path and the disk",
            ) from error
        raise

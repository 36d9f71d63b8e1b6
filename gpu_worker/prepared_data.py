"""Prepared data is trained on only if its bytes are those that preprocessing left.

A manifest beside the files holds their digests, under the digest of what they were made from; the
job's row holds the latter. xxHash, because this is read before every job while a GPU waits: it
guards against rot and mix-ups, not against forgery by somebody who can write to the store.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import xxhash

from models.errors import DataError

MANIFEST = "files.json"
_CHUNK = 1 << 20
_REMEDY = "submit the job again: its data is prepared anew"


def seal(folder: Path, digest: str) -> None:
    """Write the manifest of a folder that is complete. `digest` is that of its inputs."""
    files = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"digest": digest, "files": files}))


def verify(folder: Path, digest: str) -> None:
    """Raise DataError unless the folder holds what was sealed for `digest`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sealed, files = str(manifest["digest"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the prepared data is not there or not whole: {error}",
            where=str(folder),
            remedy=_REMEDY,
        ) from None
    if sealed != digest:
        raise DataError(
            "the prepared data was made from other data than this job's",
            where=str(folder),
            remedy=_REMEDY,
        )
    for name, expected in files.items():
        path = folder / Path(name).name
        if not path.is_file() or _known_digest(path, *_stamp(path)) != expected:
            raise DataError(
                "the prepared data has changed since it was made", where=str(path), remedy=_REMEDY
            )


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=64)
def _known_digest(path: Path, _inode: int, _size: int, _mtime_ns: int) -> str:
    """Read once per file and change: the next jobs on the same data do not wait."""
    return _digest(path)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

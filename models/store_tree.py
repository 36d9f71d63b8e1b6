"""What really lies in the artifact store: folders with their files, on a local path or any URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from models.store import is_local, local_path, reaching, remote

# What the kinds of store call the time of the last change.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or an empty folder; `path` is relative to its top folder, empty for that itself."""

    path: str
    size_bytes: int
    modified_at: float | None  # seconds since the epoch; none where the store does not tell
    is_file: bool = True


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder (or stray file) right below the place that was listed."""

    name: str
    entries: tuple[Entry, ...]


def folders(url: str) -> Iterator[Folder]:
    """All that lies below `url`, by top folder; nothing where there is no such place.

    Raises UnavailableError.
    """
    with reaching("look", url):
        yield from _local(local_path(url)) if is_local(url) else _remote(url)


def _local(root: Path) -> Iterator[Folder]:
    if not root.is_dir():
        return
    for name in sorted(os.listdir(root)):  # noqa: PTH208 (names alone, of very many)
        yield Folder(name, tuple(_walk(root / name)))


def _walk(top: Path) -> Iterator[Entry]:
    """What disappears meanwhile is passed over: others delete as well."""
    if not top.is_dir() or top.is_symlink():
        yield from _entry(top, top)
        return
    for place, folders_in, files in os.walk(top):
        here = Path(place)
        if not folders_in and not files:
            yield from _entry(here, top)
        for name in files:
            yield from _entry(here / name, top)


def _entry(path: Path, top: Path) -> Iterator[Entry]:
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return
    relative = "" if path == top else path.relative_to(top).as_posix()
    is_file = not S_ISDIR(stat.st_mode)
    yield Entry(relative, stat.st_size if is_file else 0, stat.st_mtime, is_file)


def _remote(url: str) -> Iterator[Folder]:
    filesystem, root = remote(url)
    prefix = root.rstrip("/") + "/"
    try:
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except FileNotFoundError:
        return
    tops: dict[str, list[Entry]] = {}
    for full, info in found.items():
        if not full.startswith(prefix):
            continue
        top, _, below = full.removeprefix(prefix).partition("/")
        tops.setdefault(top, []).append(Entry(below, int(info.get("size") or 0), _time(info)))
    for top, entries in sorted(tops.items()):
        yield Folder(top, tuple(entries))


def _time(info: dict[str, Any]) -> float | None:
    for name in _TIMES:
        match info.get(name):
            case float() | int() as seconds:
                return float(seconds)
            case datetime() as moment:
                return moment.timestamp()
            case str() as words:
                return datetime.fromisoformat(words).timestamp()
    return None

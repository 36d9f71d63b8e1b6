"""Files that belong to nothing on record: what dead attempts left, half copies, jobs that are gone.

Nothing of a live attempt is touched, and nothing that is younger than CELORA_ORPHAN_SECONDS. The
store is listed first and the records are read after: what is registered meanwhile is seen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from models import store
from models.errors import SetupError
from models.queries import orphans
from models.queries.files import known_files
from models.queries.orphans import KnownJob
from models.session import transaction
from models.settings import settings
from models.store_tree import Entry, Folder, folders

_BATCH = 200  # jobs that are looked up at once
_OWNER = "celora-database"


@dataclass(frozen=True, slots=True)
class Orphan:
    url: str
    size_bytes: int
    files: int  # 0: an empty folder, as a local store has them after a deletion

    @classmethod
    def of(cls, url: str, entries: Sequence[Entry]) -> Orphan:
        size_bytes = sum(entry.size_bytes for entry in entries)
        return cls(url, size_bytes, sum(entry.is_file for entry in entries))


def find(root: str) -> Iterator[Orphan]:
    """All orphans below a store's root. Raises UnavailableError."""
    yield from _of_jobs(store.join(root, "jobs"))
    yield from _of_prepared(store.join(root, "prepared"))
    yield from _of_uploads(store.join(root, "files"))


def require_ours(root: str, *, note: bool = True) -> None:
    """Raise SetupError where the store is another database's: its jobs are not on record here.

    The first sweep writes down whose it is (`note`).
    """
    with transaction() as session:
        ours = orphans.database_identity(session)
    url = store.join(root, _OWNER)
    theirs = store.read_text(url)
    if theirs is None:
        if note:
            store.write_text(url, ours)
    elif theirs != ours:
        raise SetupError(
            "this store was swept for another database: its orphans are left alone",
            where=url,
            remedy="give every database a store of its own; delete this file if the database was "
            "restored from a backup and nothing else uses the store",
        )


def _of_jobs(url: str) -> Iterator[Orphan]:
    for batch in _batches(folders(url)):
        with transaction() as session:
            known = orphans.known_jobs(session, [folder.name for folder in batch])
        for folder in batch:
            job = known.get(folder.name)
            if job is None:
                if _old(folder.entries):
                    yield Orphan.of(f"{url}/{folder.name}", folder.entries)
            else:
                for path, entries in _left_by(job, folder):
                    yield Orphan.of(f"{url}/{folder.name}/{path}".rstrip("/"), entries)


def _left_by(job: KnownJob, folder: Folder) -> Iterator[tuple[str, list[Entry]]]:
    for fence, entries in _grouped(folder.entries, depth=1):
        if not _is_over(job, fence, entries):
            continue
        if not any(path.startswith(f"{fence}/") for path in job.registered):
            yield fence, entries
            continue
        for item, below in _items(entries):
            if not any(path == item or path.startswith(f"{item}/") for path in job.registered):
                yield item, below


def _is_over(job: KnownJob, fence: str, entries: list[Entry]) -> bool:
    """Whether nobody writes there any more, and long enough."""
    if not fence.isdecimal() or int(fence) not in job.ended:
        return (bool(fence) or job.finished) and _old(entries)
    seconds = job.ended[int(fence)]
    return seconds is not None and seconds > settings().orphan_seconds


def _of_prepared(url: str) -> Iterator[Orphan]:
    found = list(folders(url))
    with transaction() as session:
        known = orphans.known_prepared(session)
    for folder in found:
        if folder.name not in known and _old(folder.entries):
            yield Orphan.of(f"{url}/{folder.name}", folder.entries)


def _of_uploads(url: str) -> Iterator[Orphan]:
    """Uploaded files, a folder for each tenant: deleted ones, and uploads that were cut off."""
    found = list(folders(url))
    with transaction() as session:
        known = known_files(session)
    for tenant in found:
        for name, entries in _grouped(tenant.entries, depth=1):
            if name and name not in known and _old(entries):
                yield Orphan.of(f"{url}/{tenant.name}/{name}".rstrip("/"), entries)


def _items(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """What is registered, or not, as a whole: each checkpoint, and what lies beside them."""
    for item, below in _grouped(entries, depth=2):
        if item.endswith("/checkpoints"):
            yield from _grouped(below, depth=3)
        else:
            yield item, below


def _grouped(entries: Iterable[Entry], *, depth: int) -> Iterator[tuple[str, list[Entry]]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault("/".join(entry.path.split("/")[:depth]), []).append(entry)
    yield from groups.items()


def _old(entries: Iterable[Entry]) -> bool:
    """No file has changed for long. Where the store does not tell, nothing is old."""
    limit = time.time() - settings().orphan_seconds
    return all(entry.modified_at is not None and entry.modified_at < limit for entry in entries)


def _batches(all_folders: Iterator[Folder]) -> Iterator[list[Folder]]:
    while batch := list(itertools.islice(all_folders, _BATCH)):
        yield batch

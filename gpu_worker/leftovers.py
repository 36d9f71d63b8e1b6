"""What dead attempts left in this host's CELORA_HOME/work: local copies of a store elsewhere.

Looked through when the gpu worker starts. The store has all that is registered; a copy saves a
download only while its job may still run. Where the store is local there is no such folder: its
files are the sweep's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from models import store
from models.queries import orphans
from models.queries.orphans import KnownJob
from models.session import transaction
from models.settings import settings
from models.store_tree import Folder, folders


def remove() -> list[str]:
    """Delete them; returns their paths. Raises UnavailableError."""
    removed = []
    for path in _leftovers():
        store.remove(path)
        removed.append(path)
    return removed


def _leftovers() -> Iterator[str]:
    work = settings().at_home("work")
    for folder in folders(str(work / "jobs")):
        with transaction() as session:
            known = orphans.known_jobs(session, [folder.name]).get(folder.name)
        if known is None or known.finished:
            if _old(folder) and not _live(known):
                yield str(work / "jobs" / folder.name)
            continue
        for fence in sorted({entry.path.partition("/")[0] for entry in folder.entries} - {""}):
            if _is_over(known, fence):
                yield str(work / "jobs" / folder.name / fence)
    with transaction() as session:
        needed = orphans.needed_prepared(session)
    for folder in folders(str(work / "prepared")):
        if folder.name not in needed and _old(folder):
            yield str(work / "prepared" / folder.name)


def _is_over(job: KnownJob, fence: str) -> bool:
    """An attempt of a job that may go on: what it registered is what the next one starts from."""
    seconds = job.ended.get(int(fence)) if fence.isdecimal() else None
    registered = any(path.startswith(f"{fence}/") for path in job.registered)
    return seconds is not None and seconds > settings().orphan_seconds and not registered


def _live(job: KnownJob | None) -> bool:
    return job is not None and None in job.ended.values()


def _old(folder: Folder) -> bool:
    limit = time.time() - settings().orphan_seconds
    return all(e.modified_at is not None and e.modified_at < limit for e in folder.entries)

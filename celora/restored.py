"""Bring a database that was restored from a backup, and what lies in the store, into step.

The rows are as old as the backup; the store may be older, newer, or a copy that was made while
things went on. So: no attempt lives, no fence is given twice, and nothing is promised that is not
there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy.orm import Session

import migrations
from models import store
from models.errors import NotFoundError, SetupError, StateError
from models.queries import disk_use, restored
from models.queries.restored import Standing
from models.queries.sealed import try_keys
from models.session import transaction
from models.settings import settings
from models.store_tree import folders

_ASKED_AT_ONCE = 16  # of a store elsewhere
_EVENTS_AT_ONCE = 20_000
_SHOWN = 20


@dataclass(slots=True)
class Done:
    """What was done (or would be), and what remains for people to do."""

    ended_jobs: list[str] = field(default_factory=list)
    raised_fences: int = 0
    gpus: int = 0
    missing: dict[str, list[Standing]] = field(default_factory=dict)  # by kind
    prepared_anew: int = 0
    unknown_jobs: list[str] = field(default_factory=list)  # in the store, not on record
    events_renumbered: bool = False
    sent_again: int = 0
    held: int = 0
    closed_secrets: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        yield f"attempts ended, their jobs run again: {_listed(self.ended_jobs)}"
        yield f"fences raised: {self.raised_fences} jobs"
        yield f"GPUs not seen since: {self.gpus}; each is back when its worker starts"
        for kind, what in _MISSING.items():
            found = self.missing.get(kind, [])
            if not found:
                yield f"{kind}: all in the store"
                continue
            yield f"{kind}: {len(found)} not whole in the store; {what}"
            if kind in {"adapters", "uploads"}:
                yield from (f"  {one.job_id or one.id}: {one.url}" for one in found[:_SHOWN])
        if self.prepared_anew:
            yield f"data prepared anew: of {self.prepared_anew} jobs"
        if self.events_renumbered:
            yield "events are told in the order of their ids: this is another database server"
        if self.sent_again:
            yield (
                f"notifications that go out: {self.sent_again}, to webhooks under the id they had"
            )
        if self.held:
            yield (
                f"notifications held, as they may have been sent: {self.held}; `celora notify log`"
                " lists them, `celora notify retry` sends one"
            )
        if self.unknown_jobs:
            yield (
                f"in the store, of jobs not on record: {_listed(self.unknown_jobs)}; they stay"
                f" until {store.join(settings().artifacts_url, 'celora-database')} is deleted"
            )
        if self.closed_secrets:
            closed = ", ".join(f"{count} {kind}" for kind, count in self.closed_secrets.items())
            yield f"CELORA_SECRET_KEY does not open: {closed}; `celora doctor` says what to do"
        yield "keys of the API that were revoked since the backup open again: `celora keys list`"


_MISSING = {
    "checkpoints": "they are forgotten, and runs go on from older ones or from the start",
    "adapters": "jobs that may still run train them anew; the others say so in `celora job`",
    "prepared": "they are forgotten",
    "uploads": "their rows stay; jobs that have yet to read one will fail and say so",
}


def after_restore(*, dry_run: bool = False, without_files: bool = False) -> Done:
    """Once, before any process starts; again is no harm. Raises CeloraError and changes nothing
    where it cannot be right: other sessions, another schema, a store that holds nothing."""
    _require_schema()
    return _Restored(dry_run=dry_run).run(without_files=without_files)


def _require_schema() -> None:
    found = migrations.current(settings().resolved_database_url)
    if found != migrations.head():
        raise SetupError(
            f"the database is at {found or 'nothing'}, this version needs {migrations.head()}",
            remedy="run `celora db upgrade` first",
        )


class _Restored:
    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.done = Done()

    def run(self, *, without_files: bool) -> Done:
        with transaction() as session:
            others = restored.other_sessions(session)
            promised = restored.standing(session)
        if others:
            raise StateError(
                f"{others} other sessions are connected to this database",
                remedy="stop every process of Celora, and psql and Grafana, and run this again",
            )
        missing = _missing(promised)
        if promised and len(missing) == len(promised) and not without_files:
            raise NotFoundError(
                f"of {len(promised)} places on record none is in the store",
                where=settings().artifacts_url,
                remedy="is CELORA_ARTIFACTS the store, and has it been copied back to the place it"
                " had? If the files are lost for good: --without-files",
            )
        fences = self._fences_in_store(without_files=without_files)
        self._renumber_events()
        self._end_attempts()
        with self._write() as session:
            self.done.gpus = restored.doubt_gpus(session)
            self.done.raised_fences = restored.raise_fences(session, fences)
            if not self.dry_run:  # a sequence is not rolled back
                restored.advance_ids(session)
        self._forget(missing)
        with self._write() as session:
            disk_use.recount(session)
            self.done.closed_secrets = try_keys(session).closed
        return self.done

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with transaction() as session:
            yield session
            if self.dry_run:
                session.rollback()

    def _fences_in_store(self, *, without_files: bool) -> dict[str, int]:
        """The highest fence of each job on record that has a folder."""
        root = settings().artifacts_url
        if without_files and store.is_local(root) and not store.local_path(root).is_dir():
            return {}
        fences: dict[str, int] = {}
        for folder in folders(store.join(root, "jobs")):
            numbers = {entry.path.partition("/")[0] for entry in folder.entries}
            fences[folder.name] = max((int(one) for one in numbers if one.isdecimal()), default=0)
        with transaction() as session:
            known = restored.known_among(session, list(fences))
        self.done.unknown_jobs = sorted(fences.keys() - known)
        return {job_id: fence for job_id, fence in fences.items() if job_id in known}

    def _renumber_events(self) -> None:
        """Before anything else writes: what is written here has this server's transactions."""
        with transaction() as session:
            self.done.events_renumbered = restored.has_foreign_order(session)
        last: int | None = 0
        while self.done.events_renumbered and not self.dry_run and last is not None:
            with transaction() as session:
                last = restored.forget_order(session, last, _EVENTS_AT_ONCE)

    def _end_attempts(self) -> None:
        # Before jobs end, which writes messages that nobody has had.
        with self._write() as session:
            self.done.sent_again, self.done.held = restored.hold_deliveries(session)
        with transaction() as session:
            job_ids = restored.live_jobs(session)
        for job_id in job_ids:
            with self._write() as session:
                if restored.end_live(session, job_id):
                    self.done.ended_jobs.append(job_id)

    def _forget(self, missing: list[Standing]) -> None:
        by_kind: dict[str, list[Standing]] = defaultdict(list)
        for one in missing:
            by_kind[one.kind].append(one)
        self.done.missing = dict(by_kind)
        for kind, forget in (
            ("checkpoints", restored.unregister_checkpoints),
            ("adapters", restored.tell_missing_adapter),
        ):
            # In one order: rows are sorted by kind and job.
            for job_id, of_job in groupby(by_kind[kind], key=lambda one: one.job_id or ""):
                with self._write() as session:
                    forget(session, job_id, [int(one.id) for one in of_job])
        with self._write() as session:
            urls = [one.url for one in by_kind["prepared"]]
            self.done.prepared_anew = restored.forget_prepared(session, urls)


def _missing(promised: list[Standing]) -> list[Standing]:
    """Those that are not there, or are smaller than when they were registered: a copy that was
    made while they were being deleted holds a part."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        whole = list(pool.map(_is_whole, promised))
    return [one for one, there in zip(promised, whole, strict=True) if not there]


def _is_whole(one: Standing) -> bool:
    return store.exists(one.url) and store.size_bytes(one.url) >= one.size_bytes


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" … and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)}" + (f" ({', '.join(found[:_SHOWN])}{more})" if found else "")

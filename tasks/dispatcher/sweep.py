"""The sweep: deletes what the rules of retention let go, and files that belong to nothing.

Rows are marked first, a few in each short transaction; the files go after, outside of any. What
could not be deleted belongs to nothing on record any more, so a later sweep finds it as an orphan.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field

from models import store
from models.errors import CeloraError
from models.queries import (
    chats,
    deliveries,
    disk_use,
    history,
    orphans,
    prepared,
    retention,
    retention_logs,
    retention_rules,
    samples,
)
from models.queries.files import EXPIRED_FILES, preview_expired
from models.queries.retention import Kind
from models.queries.retention_rules import TenantRules
from models.queries.sweeping import sweeping
from models.session import transaction
from models.settings import settings
from tasks.dispatcher.orphans import find, require_ours

log = logging.getLogger(__name__)

LOG_LINES_AT_ONCE = 5_000
CHAT_TURNS_AT_ONCE = 1_000
MARKED_AT_ONCE = 500  # rows in one transaction


@dataclass(slots=True)
class Swept:
    """What one sweep has deleted (or would delete), by kind, and what it could not do."""

    counts: Counter[str] = field(default_factory=Counter)
    size_bytes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, size_bytes: int) -> None:
        self.counts[kind] += 1
        self.size_bytes[kind] += size_bytes

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {kind} ({self.size_bytes[kind]:,} bytes)"
            if kind != "logs"
            else f"{count} log lines"
            for kind, count in sorted(self.counts.items())
        )


def run(stop: threading.Event) -> None:
    """Sweep every CELORA_SWEEP_SECONDS until `stop`."""
    while not stop.wait(settings().sweep_seconds):
        try:
            sweep(stop)
        except CeloraError as error:
            log.warning("the sweep is tried again later: %s", error)
        except Exception:
            log.exception("the sweep failed and is tried again later")


def sweep(stop: threading.Event | None = None) -> Swept | None:
    """One sweep; None where another is under way. Raises UnavailableError for the database."""
    with sweeping() as ours:
        return _Sweep(stop or threading.Event()).run() if ours else None


def preview(*, with_orphans: bool = True) -> Swept:
    """What a sweep would delete now, log lines left out; changes nothing.

    Finding orphans takes a listing of the whole store.
    """
    planned = Swept()
    with transaction() as session:
        rules = retention_rules.rules_of_tenants(session)
        for kind, count, size_bytes in retention.preview(session, rules):
            planned.counts[kind], planned.size_bytes[kind] = count, size_bytes
        uploads, uploaded_bytes = preview_expired(session)
    if uploads:
        planned.counts["uploads"], planned.size_bytes["uploads"] = uploads, uploaded_bytes
    planned.problems += _problems(rules)
    if not with_orphans:
        return planned
    try:
        require_ours(settings().artifacts_url, note=False)
        for orphan in find(settings().artifacts_url):
            if orphan.files:
                planned.add("orphans", orphan.size_bytes)
    except Exception as error:  # noqa: BLE001 (each kind of store raises its own)
        planned.problems.append(f"the store was not looked through: {error}")
    return planned


class _Sweep:
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.swept = Swept()

    def run(self) -> Swept:
        with transaction() as session:
            rules = retention_rules.rules_of_tenants(session)
        self.swept.problems += _problems(rules)
        for kind in (*retention.KINDS, EXPIRED_FILES):
            self._delete_expired(kind, rules)
        self._delete_logs(rules)
        with transaction() as session:
            samples.thin_samples(session)
        self._prune_deliveries()
        self._delete_chat_turns()
        try:
            self._adopt_prepared()
            self._delete_orphans()
        except CeloraError as error:  # the store is away, or another's
            self.swept.problems.append(str(error))
        except Exception as error:  # noqa: BLE001 (each kind of store raises its own)
            self.swept.problems.append(f"the store was not looked through: {error!r}")
        self._account()
        return self.swept

    def _delete_expired(self, kind: Kind, rules: list[TenantRules]) -> None:
        with transaction() as session:
            found = kind.find(session, rules)
        for start in range(0, len(found), MARKED_AT_ONCE):
            if self.stop.is_set():
                return
            with transaction() as session:
                gone = kind.mark(session, found[start : start + MARKED_AT_ONCE])
            for one in gone:
                if self._delete(one.url):
                    self.swept.add(one.kind, one.size_bytes)

    def _delete_logs(self, rules: list[TenantRules]) -> None:
        with transaction() as session:
            job_ids = retention_logs.expired_logs(session, rules)
        for start in range(0, len(job_ids), MARKED_AT_ONCE):
            while not self.stop.is_set():
                with transaction() as session:
                    deleted = retention_logs.delete_logs(
                        session, job_ids[start : start + MARKED_AT_ONCE], LOG_LINES_AT_ONCE
                    )
                self.swept.counts["logs"] += deleted
                if deleted < LOG_LINES_AT_ONCE:
                    break

    def _delete_chat_turns(self) -> None:
        while not self.stop.is_set():
            with transaction() as session:
                deleted = chats.delete_turns(
                    session, settings().chat_keep_seconds, CHAT_TURNS_AT_ONCE
                )
            if deleted < CHAT_TURNS_AT_ONCE:
                return

    def _prune_deliveries(self) -> None:
        while not self.stop.is_set():
            with transaction() as session:
                pruned = deliveries.prune(session, settings().notify_log_days, LOG_LINES_AT_ONCE)
            if pruned < LOG_LINES_AT_ONCE:
                return

    def _adopt_prepared(self) -> None:
        """Put on record what an earlier version has prepared: the rules then hold for it."""
        with transaction() as session:
            unrecorded = orphans.unrecorded_prepared(session)
        for digest, url in unrecorded:
            if store.exists(url):
                size_bytes = store.size_bytes(url)
                with transaction() as session:
                    prepared.register_prepared(session, digest, url, size_bytes)

    def _delete_orphans(self) -> None:
        root = settings().artifacts_url
        if store.is_local(root) and not store.local_path(root).is_dir():
            return  # on another host, or nothing was stored yet
        require_ours(root)
        for orphan in find(root):
            if self.stop.is_set():
                return
            if self._delete(orphan.url) and orphan.files:
                log.info("%s belonged to nothing and is deleted", orphan.url)
                self.swept.add("orphans", orphan.size_bytes)

    def _delete(self, url: str) -> bool:
        try:
            store.remove(url)
        except Exception as error:  # noqa: BLE001 (each kind of store raises its own)
            self.swept.problems.append(str(error))
            return False
        return True

    def _account(self) -> None:
        with transaction() as session:
            disk_use.recount(session)
            for kind, count in self.swept.counts.items():
                history.count(session, f"swept_{kind}", count)
            if freed := self.swept.size_bytes.total():
                history.count(session, "swept_bytes", freed)
        for problem in self.swept.problems:
            log.warning("%s", problem)
        if self.swept.counts:
            log.info("swept: %s", self.swept)


def _problems(rules: list[TenantRules]) -> list[str]:
    return [
        f"tenant {one.tenant}: {one.problem}; the defaults hold" for one in rules if one.problem
    ]

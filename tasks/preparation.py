"""One preprocessing attempt: claim → base's tokenizer → tokens, or those of an earlier job → end.

The work runs in a thread; the task waits for its end, a stop or the loss of the lease, whichever
comes first. Half-prepared data is never used: it is made in the attempt's own folder, and appears
under its digest when it is whole.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from gpu_worker import prepared_data, told
from gpu_worker.bases import resolve
from gpu_worker.inbox import Done, Due, Inbox
from gpu_worker.lease import Lease, LeaseLostError, now
from gpu_worker.patience import patiently
from gpu_worker.session import WorkerSession
from gpu_worker.tenant_access import access_of
from gpu_worker.told import Told
from models import disk, store
from models.errors import CeloraError, KeyMissingError, StaleFenceError, UnavailableError
from models.queries import attempts, history, products
from models.queries.attempts import Claim
from models.queries.prepared import Place, find_place
from models.settings import settings
from models.states import STOPPED_AS, Outcome, Stage, StopReason
from training_data.access import reading_as

_log = logging.getLogger(__name__)

_SAY_SECONDS = 1.0  # progress is written this often at most


@dataclass(frozen=True)
class _Found:
    """What the job trains on; no URL and digest for a scripted job, which trains on nothing."""

    verdict: dict[str, Any]
    base_revision: str | None = None
    digest: str | None = None
    url: str | None = None
    new_bytes: int | None = None  # size of data that is not on record yet


class _Stopped(Exception):  # noqa: N818 (no error: it was asked for)
    """The thread leaves: a stop was asked for, or the lease is lost."""


def prepare_job(session: WorkerSession, job_id: str, fence: int) -> Told:
    """True when the data is prepared. False: a stale ticket, bad data, or a stop."""
    try:
        claim = session.claim(job_id, fence, Stage.PREPROCESS)
    except UnavailableError as error:
        _log.warning("job %s: not claimed: %s", job_id, error.what)
        return told.dropped(f"not claimed: {error.what}")
    if claim is None or session.lease is None:
        return told.dropped("a ticket that is late or repeated, or of a job that was stopped")
    attempt = _Attempt(claim, session.lease, session.worker)
    session.attach(attempt.inbox.put)
    try:
        return attempt.run()
    except (LeaseLostError, StaleFenceError) as error:
        _log.warning("job %s fence %s: %s", job_id, fence, error.what)
        return told.dropped(error.what)
    finally:
        attempt.stopping.set()
        session.release()


class _Attempt:
    def __init__(self, claim: Claim, lease: Lease, worker: str) -> None:
        self.claim, self.lease, self.worker = claim, lease, worker
        self.inbox = Inbox()
        self.stopping = threading.Event()
        self.scratch = store.work_folder(claim.job_id, claim.fence) / "prepare"
        self._said_at = 0.0

    def run(self) -> Told:
        self.inbox.in_background(self._work)
        stop: StopReason | None = None
        while True:
            match self.inbox.next():
                case Done(value=_Found() as found):
                    return self._completed(found)
                case Done(error=BaseException() as error):
                    return self._ended(error, stop)
                case StopReason() as stop:
                    self.stopping.set()
                    self.inbox.set_deadline(Due.GRACE, now() + settings().cancel_grace_seconds)
                case Due.GRACE:
                    # It sits in a download: left alone, it finds out when it comes back.
                    return self._end(STOPPED_AS[stop or StopReason.CANCEL])

    # In the thread

    def _work(self) -> _Found:
        if self.claim.spec.scripted:
            return _Found({"scripted": True}, base_revision="scripted")
        try:
            return patiently(self._as_tenant, say=self._say, wait=self.stopping.wait)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _as_tenant(self) -> _Found:
        with reading_as(access_of(self.lease, self.claim.tenant)):
            return self._find_or_make()

    def _find_or_make(self) -> _Found:
        from training_data.prepare import input_digest, prepare
        from training_data.rows import require_sources

        spec = self.claim.spec
        self._say("looking for the data")
        require_sources(spec)
        self._say("fetching the tokenizer")
        base = resolve(
            spec.base_model,
            spec.base_revision,
            weights=False,
            trust_remote_code=spec.trust_remote_code,
        )
        tokenizer_path = str(base.path)
        self._say("reading the data")
        digest = input_digest(spec, tokenizer_path, should_stop=self.stopping.is_set)
        place = self._place(digest)
        if store.exists(place.url):
            return self._found(digest, base.revision, place)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True, exist_ok=True)
        prepared = prepare(
            spec,
            tokenizer_path=tokenizer_path,
            scratch=self.scratch,
            on_progress=self._progress,
            should_stop=self.stopping.is_set,
        )
        self._leave_if_stopped()
        # The digest of what was really read decides: the source may have changed since the look.
        prepared_data.seal(prepared.folder, prepared.digest)
        self._say("storing the prepared data")
        place = self._place(prepared.digest)
        store.place(prepared.folder, place.url)
        return self._found(prepared.digest, base.revision, place)

    def _place(self, digest: str) -> Place:
        return self.lease.insist(lambda session: find_place(session, digest))

    def _found(self, digest: str, base_revision: str, place: Place) -> _Found:
        verdict = json.loads(store.read(place.url, "verdict.json"))
        new_bytes = None if place.on_record else store.size_bytes(place.url)
        return _Found(verdict, base_revision, digest, place.url, new_bytes)

    def _progress(self, what: str, rows: int) -> None:
        self._leave_if_stopped()
        if now() - self._said_at > _SAY_SECONDS:
            self._say(f"{what}: {rows:,} rows" if rows else what)

    def _leave_if_stopped(self) -> None:
        if self.stopping.is_set():
            raise _Stopped

    def _say(self, what: str) -> None:
        self._leave_if_stopped()
        self._said_at = now()
        self.lease.insist(
            lambda session: history.set_activity(session, self.claim.job_id, self.claim.fence, what)
        )

    # Ends

    def _completed(self, found: _Found) -> Told:
        def write(session: Session) -> Told:
            products.set_prepared(
                session,
                self.claim.job_id,
                self.claim.fence,
                prepared_url=found.url,
                data_digest=found.digest,
                base_revision=found.base_revision,
                verdict=found.verdict,
                prepared_bytes=found.new_bytes,
            )
            job = attempts.end_attempt(
                session, self.claim.job_id, self.claim.fence, Outcome.COMPLETED
            )
            return told.prepared(job, found.verdict, now() - self.lease.claimed_at, self.worker)

        return self.lease.conclude(write)

    def _ended(self, error: BaseException, stop: StopReason | None) -> Told:
        if stop is not None:
            return self._end(STOPPED_AS[stop])
        if isinstance(error, UnavailableError):
            # The job's error only when it was lost too often.
            counted = not isinstance(error, KeyMissingError)
            return self._end(Outcome.LOST, reason=error.what, error=error.record(), counted=counted)
        if isinstance(error, (LeaseLostError, StaleFenceError)):
            raise error
        if isinstance(error, CeloraError):
            return self._end(Outcome.FAILED, reason=error.what, error=error.record())
        if disk.is_full(error):
            full = disk.full(error, self.scratch)
            return self._end(Outcome.FAILED, reason=full.what, error=full.record())
        _log.error("job %s: preprocessing failed", self.claim.job_id, exc_info=error)
        return self._end(Outcome.LOST, reason=f"the worker met an error of its own: {error!r}")

    def _end(
        self,
        outcome: Outcome,
        *,
        reason: str | None = None,
        error: dict[str, Any] | None = None,
        counted: bool = True,
    ) -> Told:
        def write(session: Session) -> Told:
            job = attempts.end_attempt(
                session,
                self.claim.job_id,
                self.claim.fence,
                outcome,
                reason=reason,
                error=error,
                counted=counted,
            )
            return told.ended(job, outcome, reason, [], self.worker)

        return self.lease.conclude(write)

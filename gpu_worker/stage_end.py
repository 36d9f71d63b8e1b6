"""How a stage ends, in one transaction: what it still had to record, and where the job goes.

The device is reported free in the same transaction, first (rows are locked gpus → jobs): the next
job is placed by the commit that ends this one.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from gpu_worker import told
from gpu_worker.base_evaluation import evaluation_cache_key
from gpu_worker.chat_desk import ChatDesk
from gpu_worker.checkpoints import CheckpointKeeper
from gpu_worker.gpu_session import GpuSession
from gpu_worker.inbox import Done, Due, Inbox
from gpu_worker.lease import Lease, now
from gpu_worker.patience import patiently
from gpu_worker.protocol import Evaluated, EvaluationResult, Exported, Failed, Preferences, Trained
from gpu_worker.recorder import Recorder
from gpu_worker.session import LeaseLost
from gpu_worker.told import Told
from models import store
from models.errors import CeloraError, KeyMissingError, StateError, TimeLimitError
from models.queries import adapter_work, attempts, history, jobs, products
from models.queries.attempts import Claim
from models.settings import settings
from models.states import STOPPED_AS, Outcome, Stage, StopReason

_log = logging.getLogger(__name__)

_FOR_GOOD = frozenset({Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED})

Write = Callable[[Session], None]


class StageEnd:
    """Each method ends the stage one way; True from those after which the next stage may run."""

    def __init__(self, session: GpuSession, claim: Claim, lease: Lease, inbox: Inbox) -> None:
        self.session, self.claim, self.lease, self.inbox = session, claim, lease, inbox
        self.trackers = session.trackers_for(claim)
        self.recorder = Recorder(
            claim.job_id,
            claim.fence,
            claim.stage,
            on_stale=lambda: inbox.put(LeaseLost("another ended the attempt")),
            feed=self.trackers.log,
        )
        self.desk: ChatDesk | None = None  # of a chat
        self.keeper = CheckpointKeeper(claim.job_id, claim.fence, lease, self.recorder.flush)

    def trained(self, trained: Trained) -> Told:
        self.keep_checkpoints()
        claim = self.claim
        url = store.join(store.attempt_url(claim.job_id, claim.fence), Path(trained.path).name)
        if (stop := self._upload(trained.kind, Path(trained.path), url)) is not None:
            return self.stopped(stop, step=trained.step)
        result = trained.result | {
            "steps": trained.step,
            "trained_tokens": trained.trained_tokens,
            "device": self.session.device.model,
            "worker": self.session.worker,
        }

        def register(session: Session) -> None:
            products.register_artifact(
                session,
                claim.job_id,
                claim.fence,
                kind=trained.kind,
                url=url,
                size_bytes=trained.size_bytes,
                digest=trained.digest,
            )

        if not claim.spec.evaluate:
            return self._end(Outcome.COMPLETED, register, step=trained.step, result=result)
        self.recorder.stop()

        def finish(session: Session) -> list[float]:
            self.recorder.write_rest(session)
            register(session)
            attempts.finish_stage(
                session, claim.job_id, claim.fence, Stage.TRAIN, Stage.EVALUATE, result=result
            )
            return history.loss_span(session, claim.job_id)

        losses: list[float] = []
        try:
            losses = self.lease.insist(finish)
        except StateError:
            _log.info("job %s: its stage had been finished already", claim.job_id)
        self.session.detach()
        seconds = claim.gpu_seconds_so_far + now() - self.lease.claimed_at
        return told.trained(losses, trained.step, seconds, self.session.worker)

    def exported(self, exported: Exported) -> Told:
        claim = self.claim
        url = store.join(store.attempt_url(claim.job_id, claim.fence), Path(exported.path).name)
        if (stop := self._upload("export", Path(exported.path), url)) is not None:
            return self.stopped(stop)

        def register(session: Session) -> None:
            adapter_work.register_export(
                session,
                claim.job_id,
                claim.fence,
                url=url,
                size_bytes=exported.size_bytes,
                digest=exported.digest,
                report=exported.report,
            )

        return self._end(Outcome.COMPLETED, register, result={"export": exported.report})

    def chatted(self, why: str) -> Told:
        said = self.desk
        counts = {"turns": said.turns, "tokens": said.tokens} if said is not None else {}
        return self._end(Outcome.COMPLETED, result={"chat": counts | {"ended": why}}, reason=why)

    def nobody_there(self, why: str) -> Told:
        """Whoever began the chat has left while it waited for a GPU."""
        return self._end(Outcome.CANCELLED, reason=why)

    def evaluated(self, evaluated: Evaluated) -> Told:
        claim = self.claim
        key = evaluation_cache_key(claim, self.session.device.kind)

        def record(session: Session) -> None:
            for subject, result in (("base", evaluated.base), ("tuned", evaluated.tuned)):
                products.record_evaluation(
                    session,
                    claim.job_id,
                    claim.fence,
                    subject=subject,
                    cache_key=key if subject == "base" else None,
                    **result.model_dump(),
                )
            samples = [sample.model_dump() for sample in evaluated.samples]
            products.record_samples(session, claim.job_id, claim.fence, samples)
            if evaluated.preferences is not None:
                step = jobs.get_job(session, claim.job_id).step
                points = [(n, step, v) for n, v in _rankings(evaluated.preferences)]
                history.record_metrics(session, claim.job_id, claim.fence, Stage.EVALUATE, points)

        summary = {
            "base": _summary(evaluated.base),
            "tuned": _summary(evaluated.tuned),
            "base_cached": evaluated.base_cached,
        }
        if evaluated.preferences is not None:
            summary["preferences"] = evaluated.preferences.model_dump()
        return self._end(Outcome.COMPLETED, record, result={"evaluation": summary})

    def nothing_to_evaluate(self) -> Told:
        """What was trained is kept: that no rows were held out was said with the data's verdict."""

        def tell(session: Session) -> None:
            history.add_event(
                session,
                self.claim.job_id,
                "evaluation_skipped",
                "not evaluated: no rows are held out; eval_dataset or a validation_fraction above 0"
                " would give some",
                level="warn",
            )

        return self._end(Outcome.COMPLETED, tell)

    def stopped(self, reason: StopReason | None, *, step: int | None = None) -> Told:
        """Stopped as asked; for no reason: over the time limit."""
        if reason is not None:
            return self._end(STOPPED_AS[reason], step=step)
        error = TimeLimitError(
            f"the job used its {self.claim.spec.time_limit_seconds} s of GPU time",
            remedy="submit it with a higher time_limit_seconds, or fewer steps",
        )
        return self.failed(error.record(), step=step)

    def failed(self, error: dict[str, Any], *, step: int | None = None) -> Told:
        return self._end(Outcome.FAILED, reason=error.get("message"), step=step, error=error)

    def gave_up(self, why: str, error: CeloraError | None = None) -> Told:
        """The attempt is lost; what its trainer had saved before is kept for the next one.

        `error` is the job's where there is no next one.
        """
        self.keep_checkpoints()
        return self._end(
            Outcome.LOST,
            reason=why,
            error=error.record() if error else None,
            counted=not isinstance(error, KeyMissingError),
        )

    def out_of_memory(self, failed: Failed) -> Told:
        """Again with a smaller micro-batch and the same effective batch, if there is a smaller."""
        spec, overrides = self.claim.spec, self.claim.overrides
        batch = overrides.get("batch_size", spec.batch_size)
        smaller = smaller_batch(batch, spec.effective_batch_size)
        if smaller is None or self.claim.stage is not Stage.TRAIN:
            error = failed.error | {
                "remedy": "use a smaller max_sequence_length, a smaller base, or qlora"
            }
            return self.failed(error, step=failed.step)
        accumulation = spec.effective_batch_size // smaller
        said = f"out of memory with {batch} rows: again with {smaller} and {accumulation} steps"

        def tell(session: Session) -> None:
            history.add_event(
                session,
                self.claim.job_id,
                "out_of_memory",
                said,
                level="warn",
                data={"batch_size": smaller, "gradient_accumulation": accumulation},
            )

        return self._end(
            Outcome.RETRIED,
            tell,
            reason=said,
            step=failed.step,
            overrides={"batch_size": smaller, "gradient_accumulation": accumulation},
        )

    def abandon(self) -> None:
        """The lease is lost: end the threads, write nothing."""
        self.recorder.abandon()
        if self.desk is not None:
            self.desk.abandon()
        self.trackers.finish(outcome=Outcome.LOST)
        self.session.release()

    def keep_checkpoints(self) -> None:
        """Wait until the checkpoints are registered; a cancel does not wait."""
        if self.keeper.then(lambda: self.inbox.put(Done())):
            self._until_done()

    def _upload(self, kind: str, folder: Path, url: str) -> StopReason | None:
        """Into a store elsewhere, which is asked again while it is away: hours of training are not
        thrown away for a hiccup. The reason of a stop that did not wait. Raises CeloraError."""
        if store.is_local(url):
            return None

        def say(what: str) -> None:
            self.recorder.activity(what, at_once=True)

        def upload() -> None:
            patiently(lambda: store.upload(folder, url), say=say, wait=self.lease.over)

        say(f"uploading the {kind}")
        self.inbox.in_background(upload)
        return self._until_done()

    def _until_done(self) -> StopReason | None:
        """Wait for work in the background. A cancel ends the waiting, and so does a stop's grace:
        returns its reason then.

        Until then a stop waits: a finished upload is worth more than a repeated run.
        """
        waits: StopReason | None = None
        while True:
            match self.inbox.next():
                case Done(error=BaseException() as error):
                    raise error
                case Done():
                    return None
                case StopReason.CANCEL:
                    return StopReason.CANCEL
                case StopReason() as waits:
                    self.inbox.set_deadline(Due.GRACE, now() + settings().stop_grace_seconds)
                case Due.GRACE:
                    return waits or StopReason.PREEMPT

    def _end(
        self,
        outcome: Outcome,
        write: Write | None = None,
        *,
        reason: str | None = None,
        step: int | None = None,
        error: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        overrides: dict[str, Any] | None = None,
        counted: bool = True,
    ) -> Told:
        self.recorder.stop()
        if self.desk is not None:
            self.desk.stop()

        def end(session: Session) -> Told:
            self.session.report(session)
            self.recorder.write_rest(session)
            if self.desk is not None:
                self.desk.write_rest(session)
            if write is not None:
                write(session)
            job = attempts.end_attempt(
                session,
                self.claim.job_id,
                self.claim.fence,
                outcome,
                reason=reason,
                step=step,
                error=error,
                result=result,
                overrides=overrides,
                counted=counted,
            )
            shows_losses = outcome is Outcome.COMPLETED and "evaluation" not in (job.result or {})
            losses = history.loss_span(session, job.id) if shows_losses else []
            return told.ended(job, outcome, reason, losses, self.session.worker)

        said = self.lease.conclude(end)
        self.trackers.finish(result, outcome)
        self.session.release()
        if outcome in _FOR_GOOD and not store.is_local(settings().artifacts_url):
            _remove_later(store.work_folder(self.claim.job_id, self.claim.fence))
        return said


def smaller_batch(batch: int, effective: int) -> int | None:
    """The largest micro-batch of at most half of `batch` that divides the effective batch."""
    return next((size for size in range(batch // 2, 0, -1) if effective % size == 0), None)


def _rankings(preferences: Preferences) -> Iterator[tuple[str, float]]:
    """As metrics of the stage: base/reward_margin, tuned/accuracy, …"""
    for subject, ranking in (("base", preferences.base), ("tuned", preferences.tuned)):
        for name, value in ranking.model_dump().items():
            if value is not None:
                yield f"{subject}/{name}", value


def _summary(result: EvaluationResult) -> dict[str, Any]:
    return result.model_dump(exclude={"answers"})


def _remove_later(folder: Path) -> None:
    """The store has it all: the local copies go, and the next job does not wait for that.

    With those of the attempts before, which this one may have fetched; an attempt after it, as a
    retry makes one, has its own.
    """

    def remove() -> None:
        for fence in range(1, int(folder.name) + 1):
            shutil.rmtree(folder.with_name(str(fence)), ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()

    threading.Thread(target=remove, daemon=True).start()

"""Jobs that wait for another: `after` in their specification."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from models.errors import SpecError, StateError
from models.notices import Notice
from models.queries.history import add_event
from models.queries.notices import tell
from models.queries.settle import move
from models.spec import JobSpec, stored_spec
from models.states import JobState
from models.tables import Attempt, Job
from models.turns import turn_at

# What must be equal for one job's adapter to be the beginning of another's.
_ADAPTER_FIELDS = (
    "base_model",
    "base_revision",
    "rank",
    "alpha",
    "target_modules",
    "use_rslora",
)
_RELEASE_AT_ONCE = 500


def predecessor(session: Session, tenant_id: int, spec: JobSpec) -> str | None:
    """The id of the job that `spec.after` names and that has not completed yet.

    Raises SpecError when there is no such job of the tenant, nothing will come of it any more, or
    its adapter cannot be the beginning of the new one.
    """
    if spec.after is None:
        return None
    first = session.scalars(
        select(Job).where(Job.id == spec.after, Job.tenant_id == tenant_id)
    ).one_or_none()
    if first is None:
        raise SpecError(f"there is no job {spec.after}", where="after", remedy="see `celora jobs`")
    if spec.start_from_adapter:
        _require_like_adapter(spec, stored_spec(first.spec))
    if first.state in {JobState.CANCELLED, JobState.FAILED}:
        raise SpecError(
            f"job {first.id} is {first.state}: it will not complete",
            where="after",
            remedy="run a failed job again with `celora retry`, or name another one",
        )
    return None if first.state == JobState.COMPLETED else first.id


def release_jobs(session: Session) -> int:
    """Let those wait for a GPU whose predecessor has completed; fail those whose was cancelled.

    A failed predecessor may be run again: its successors wait. Returns how many changed.
    """
    waiting = session.execute(_RELEASABLE).all()
    for job, first_id, state, now in waiting:
        job.waits_for = None
        if state == JobState.CANCELLED:
            _fail(session, job, now, first_id)
        else:
            # It waits for a GPU from now on, not since it was submitted: a long chain of jobs
            # would overtake everybody else's.
            job.queued_at, job.turn_at = now, turn_at(now, job.priority)
            add_event(session, job.id, "released", f"{first_id} has completed", wake=True)
    session.flush()
    return len(waiting)


# Built once: the dispatcher asks at every wake-up.
_first = aliased(Job)
_RELEASABLE = (
    select(Job, _first.id, _first.state, func.clock_timestamp())
    .join(_first, _first.id == Job.waits_for)
    .where(
        _first.state.in_([JobState.COMPLETED, JobState.CANCELLED]),
        Job.state.in_([JobState.PENDING, JobState.QUEUED]),
        ~select(Attempt.id).where(Attempt.job_id == Job.id, Attempt.ended_at.is_(None)).exists(),
    )
    .order_by(Job.id)
    .limit(_RELEASE_AT_ONCE)
    .with_for_update(key_share=True, skip_locked=True, of=Job)
    .execution_options(populate_existing=True)
)


def _fail(session: Session, job: Job, now: datetime, first_id: str) -> None:
    move(job, now, JobState.FAILED)
    job.fence += 1
    job.error = StateError(
        f"the job it waits for, {first_id}, was cancelled",
        where="after",
        remedy="submit it again, without `after` or after another job",
    ).record()
    add_event(session, job.id, "failed", f"failed: {job.error['message']}", level="error")
    tell(session, job, Notice.FAILED)


def _require_like_adapter(spec: JobSpec, first: JobSpec) -> None:
    if first.method == "full":
        raise SpecError(
            "that job trains all weights: it leaves no adapter",
            where="start_from_adapter",
            remedy="give its model folder as `base_model` instead",
        )
    for name in _ADAPTER_FIELDS:
        mine, others = getattr(spec, name), getattr(first, name)
        if mine != others:
            raise SpecError(
                f"is {mine}, but the adapter to start from has {others}",
                where=name,
                remedy="use the same value as that job",
            )

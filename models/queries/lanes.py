"""Lanes: the queue a job stands in, by its user, what it asks of a GPU, and its urgency."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import SpecError
from models.gpu_wish import GpuWish
from models.queries.history import add_event
from models.queries.settle import move
from models.spec import JobSpec, stored_spec
from models.states import JobState, Purpose
from models.tables import GpuNeed, Job, Lane, User
from models.turns import turn_at

_ADOPT_AT_ONCE = 500


def lane_of(
    session: Session,
    tenant_id: int,
    user: str,
    spec: JobSpec,
    purpose: Purpose = Purpose.TUNE,
    *,
    own_pod: bool = False,
) -> int:
    """The id of the lane that a job queues in; made when it is the first of its kind."""
    wish = GpuWish.of(spec, purpose)
    if own_pod:
        wish = wish.in_own_pod()
    row = {
        "of_tenant": tenant_id,
        "of_user": user,
        "of_key": wish.key(),
        "is_urgent": spec.urgent,
    }
    found = session.execute(_FIND, row).scalar_one_or_none()
    return found or _new_lane(session, tenant_id, user, wish, urgent=spec.urgent)


def adopt_jobs(session: Session) -> int:
    """Give a lane to waiting jobs that have none: an older version, or a migration, left them.

    A row whose specification cannot be read fails here, alone: it must not hold up the others.
    Returns how many.
    """
    waiting = session.execute(
        select(Job, func.clock_timestamp())
        .where(Job.lane_id.is_(None), Job.state.in_([JobState.PENDING, JobState.QUEUED]))
        .order_by(Job.id)
        .limit(_ADOPT_AT_ONCE)
        .with_for_update(key_share=True, skip_locked=True, of=Job)
    ).all()
    for job, now in waiting:
        try:
            spec = stored_spec(job.spec)
        except SpecError as error:
            _fail(session, job, now, error)
            continue
        job.lane_id = lane_of(session, job.tenant_id, job.user_name, spec, Purpose(job.purpose))
        job.turn_at = turn_at(job.queued_at, job.priority)
    session.flush()
    return len(waiting)


def _fail(session: Session, job: Job, now: datetime, error: SpecError) -> None:
    move(job, now, JobState.FAILED)
    job.fence += 1
    job.error = error.record()
    add_event(session, job.id, "failed", f"failed: {error.what}", level="error")


def user_id_of(session: Session, tenant_id: int, name: str) -> int:
    """The user's row, made at the first use of the name."""
    known = select(User.id).where(User.tenant_id == tenant_id, User.name == name)
    found = session.scalar(known)
    if found is None:
        session.execute(
            upsert(User).values(tenant_id=tenant_id, name=name).on_conflict_do_nothing()
        )
        found = session.scalars(known).one()
    return found


def _new_lane(session: Session, tenant_id: int, user: str, wish: GpuWish, *, urgent: bool) -> int:
    session.execute(
        upsert(GpuNeed)
        .values(
            key=wish.key(), memory_bytes=wish.memory_bytes, model=wish.model, labels=wish.labels
        )
        .on_conflict_do_nothing()
    )
    need_id = session.scalars(select(GpuNeed.id).where(GpuNeed.key == wish.key())).one()
    row = {
        "user_id": user_id_of(session, tenant_id, user),
        "need_id": need_id,
        "urgent": urgent,
    }
    session.execute(upsert(Lane).values(tenant_id=tenant_id, **row).on_conflict_do_nothing())
    return session.scalars(select(Lane.id).filter_by(**row)).one()


_FIND = (
    select(Lane.id)
    .join(User, User.id == Lane.user_id)
    .join(GpuNeed, GpuNeed.id == Lane.need_id)
    .where(
        User.tenant_id == bindparam("of_tenant"),
        User.name == bindparam("of_user"),
        GpuNeed.key == bindparam("of_key"),
        Lane.urgent == bindparam("is_urgent"),
    )
)

# Which of some GPUs has what which lane's jobs ask for.
FITS = """
    gpus.memory_bytes >= gpu_needs.memory_bytes
    AND (gpu_needs.model IS NULL OR position(gpu_needs.model IN lower(gpus.model)) > 0)
    AND gpus.labels || coalesce(gpus.versions -> 'abilities', CAST('{}' AS jsonb))
        @> gpu_needs.labels
"""

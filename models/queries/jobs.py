"""Jobs as their owners see them: submit, find, list, stop, resume, retry."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import func, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from models.ending import waiting_state
from models.errors import InputError, NotFoundError, SpecError, StateError
from models.notices import Notice
from models.queries.dependencies import predecessor
from models.queries.fence import lock_job, no_such_job
from models.queries.history import add_event
from models.queries.lanes import lane_of
from models.queries.notices import look_anew, tell
from models.queries.settle import move, settle
from models.queries.targets import name_targets
from models.spec import JobSpec
from models.states import (
    STOPPED_AS,
    TERMINAL,
    JobState,
    Purpose,
    Stage,
    StopReason,
    is_stronger,
)
from models.tables import Attempt, Job, Tenant
from models.turns import head_start

ID_PREFIX = "ftjob-"
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24
_TENANT_LENGTH = 64  # characters


def insert_job(
    session: Session,
    spec: JobSpec,
    *,
    tenant: str,
    user: str,
    idempotency_key: str | None = None,
    request: dict[str, Any] | None = None,
    own_pod: bool = False,
) -> Job:
    """Put a job on record; this is all that a submit is. `request`: what came over HTTP; `own_pod`:
    no dispatcher places it, its pod does (own_pod.py).

    A key that the tenant used before returns that first job, unchanged. A new tenant gets a row of
    its own with the default weight. Raises InputError, SpecError.
    """
    fields = spec.model_dump(mode="json")
    _refuse_nul(fields, tenant, user, idempotency_key)
    owner = _tenant(session, tenant)
    job = session.scalars(
        upsert(Job)
        .values(
            id=new_job_id(),
            tenant_id=owner.id,
            user_name=user,
            name=spec.name,
            idempotency_key=idempotency_key,
            spec=fields,
            base_model=spec.base_model,
            method=spec.method,
            priority=spec.priority,
            lane_id=lane_of(session, owner.id, user, spec, own_pod=own_pod),
            turn_at=func.now() - head_start(spec.priority),
            waits_for=predecessor(session, owner.id, spec),
            request=request,
        )
        .on_conflict_do_nothing(index_elements=["tenant_id", "idempotency_key"])
        .returning(Job)
    ).one_or_none()
    if job is None:
        first = find_by_key(session, tenant, idempotency_key or "")
        if first is None:  # deleted between the two statements
            raise StateError("the first job with this idempotency key is just being deleted")
        return first
    set_committed_value(job, "tenant", owner)
    name_targets(session, job, spec)
    add_event(session, job.id, "submitted", f"submitted by {user}", wake=True)
    return job


def new_job_id() -> str:
    return ID_PREFIX + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


def get_job(session: Session, job_id: str) -> Job:
    """Raises NotFoundError."""
    job = session.scalars(select(Job).where(Job.id == job_id)).one_or_none()
    if job is None:
        raise no_such_job(job_id)
    return job


def find_by_key(session: Session, tenant: str, key: str) -> Job | None:
    return session.scalars(
        select(Job)
        .join(Tenant, Tenant.id == Job.tenant_id)
        .where(Tenant.name == tenant, Job.idempotency_key == key)
    ).one_or_none()


def list_jobs(
    session: Session,
    *,
    tenant: str | None = None,
    states: Iterable[JobState] | None = None,
    purpose: Purpose | None = None,
    limit: int = 50,
    after: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Job]:
    """Newest first, exports and chats among them unless a purpose is named. `after` is the last job
    of the page before; pages stay put as jobs arrive.

    `metadata`: pairs that a job has among its own; without a pair, those of jobs that have none.
    """
    statement = select(Job).order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    if tenant is not None:
        owner = select(Tenant.id).where(Tenant.name == tenant).scalar_subquery()
        statement = statement.where(Job.tenant_id == owner)
    if states is not None:
        statement = statement.where(Job.state.in_([state.value for state in states]))
    if purpose is not None:
        statement = statement.where(Job.purpose == purpose)
    if metadata is not None:
        own = Job.spec["metadata"]
        statement = statement.where(
            own.contains(dict(metadata)) if metadata else own.contained_by({})
        )
    if after is not None:
        last = get_job(session, after)
        statement = statement.where(
            tuple_(Job.created_at, Job.id) < tuple_(last.created_at, last.id)
        )
    return list(session.scalars(statement))


def attempts_of(session: Session, job_id: str) -> list[Attempt]:
    """All attempts of a job, the first placed first."""
    return list(
        session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence))
    )


def resolve_job_id(session: Session, text: str) -> str:
    """The id that `text` means: a whole one, its beginning (with or without "ftjob-"), or "last"
    for the newest one that trains.

    Raises NotFoundError; InputError when several jobs begin so.
    """
    if text == "last":
        newest = session.scalar(
            select(Job.id)
            .where(Job.purpose == Purpose.TUNE)
            .order_by(Job.created_at.desc(), Job.id.desc())
            .limit(1)
        )
        if newest is None:
            raise NotFoundError("there are no jobs yet", remedy="`celora submit` makes one")
        return newest
    prefix = ID_PREFIX + text.removeprefix(ID_PREFIX)
    if not set(prefix.removeprefix(ID_PREFIX)) <= set(_ID_LETTERS):
        raise no_such_job(text)
    # Ids are ordered bytewise, and "~" comes after every letter: a range of the primary key.
    found = session.scalars(
        select(Job.id).where(Job.id >= prefix, Job.id < prefix + "~").order_by(Job.id).limit(3)
    ).all()
    if not found:
        raise no_such_job(text)
    if len(found) > 1 and found[0] != prefix:
        raise InputError(
            f"several jobs begin with {text!r}: {', '.join(found[:2])}, …",
            remedy="write more of the id",
        )
    return found[0]


def request_stop(session: Session, job_id: str, reason: StopReason) -> Job:
    """Cancel, pause, preempt or drain. Idempotent.

    A job that nobody works on stops here and now, and its ticket becomes stale; a working attempt
    is asked, and ends itself. Cancelling a finished job changes nothing. Raises NotFoundError;
    StateError for a pause of a finished job.
    """
    job, now = lock_job(session, job_id)
    state = JobState(job.state)
    if state in TERMINAL:
        if reason is StopReason.PAUSE:
            raise StateError(
                f"job {job_id} is {state}: there is nothing to pause",
                remedy="`celora job` shows its result",
            )
        return job
    live = session.execute(
        select(Attempt.claimed_at).where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
    ).one_or_none()
    if live is not None and live.claimed_at is not None:
        asked = StopReason(job.stop_requested) if job.stop_requested else None
        if is_stronger(reason, asked):
            job.stop_requested, job.stop_requested_at = reason, now
            add_event(session, job_id, "stop_requested", f"asked to stop: {reason}")
    elif live is not None:
        job.stop_requested = reason
        settle(session, job, now, STOPPED_AS[reason], reason="it had not started yet")
    elif reason in {StopReason.CANCEL, StopReason.PAUSE}:
        wanted = JobState.CANCELLED if reason is StopReason.CANCEL else JobState.PAUSED
        if wanted is not state:
            move(job, now, wanted)
            job.fence += 1
            add_event(session, job_id, wanted, f"{wanted} while it waited")
            if wanted is JobState.CANCELLED:
                tell(session, job, Notice.CANCELLED)
    session.flush()
    return job


def resume_job(session: Session, job_id: str) -> Job:
    """Put a paused job back in the queue; takes back a pause that has not been obeyed yet.

    A job that waits or runs is returned as it is. Raises NotFoundError; StateError when it is over.
    """
    job, now = lock_job(session, job_id)
    state = JobState(job.state)
    if state in TERMINAL:
        raise StateError(
            f"job {job_id} is {state} and cannot be resumed",
            remedy="`celora retry` runs a failed job again; otherwise submit a new one",
        )
    if state is JobState.PAUSED:
        move(job, now, waiting_state(Stage(job.stage)))
        look_anew(session, job_id)
        add_event(session, job_id, "resumed", "resumed; waits for its turn", wake=True)
    elif job.stop_requested == StopReason.PAUSE:
        job.stop_requested = job.stop_requested_at = None
        add_event(session, job_id, "resumed", "the pause was taken back")
    session.flush()
    return job


def retry_job(session: Session, job_id: str) -> Job:
    """Put a failed job back in the queue, at its first unfinished stage and newest checkpoint.

    A job that waits or runs is returned as it is. Raises NotFoundError; StateError.
    """
    job, now = lock_job(session, job_id)
    state = JobState(job.state)
    if state is JobState.FAILED and job.purpose == Purpose.CHAT:
        raise StateError(
            f"chat {job_id} is over: nobody sits at it any more", remedy="start a new one"
        )
    if state is JobState.FAILED:
        move(job, now, waiting_state(Stage(job.stage)))
        look_anew(session, job_id)
        job.losses = 0
        job.gpu_seconds_before_retry = job.gpu_seconds  # else one over its time limit fails at once
        job.error = job.finished_at = job.cost = None  # priced anew when it ends
        add_event(session, job_id, "retried", "runs again on request", wake=True)
    elif state in TERMINAL or state is JobState.PAUSED:
        raise StateError(
            f"job {job_id} is {state}: only a failed job can be run again",
            remedy="`celora resume` continues a paused job; otherwise submit a new one",
        )
    session.flush()
    return job


def _tenant(session: Session, name: str) -> Tenant:
    if not 1 <= len(name) <= _TENANT_LENGTH or not name.isprintable():
        raise InputError(
            f"a tenant's name has 1 to {_TENANT_LENGTH} printable characters",
            where="tenant",
            remedy="choose another name",
        )
    known = select(Tenant).where(Tenant.name == name)
    tenant = session.scalars(known).one_or_none()
    if tenant is None:
        session.execute(upsert(Tenant).values(name=name).on_conflict_do_nothing())
        tenant = session.scalars(known).one()
    return tenant


def _refuse_nul(fields: dict[str, object], *texts: str | None) -> None:
    """Postgres holds no NUL character, neither in text nor in JSON."""
    for name, value in fields.items():
        if _holds_nul(value):
            raise SpecError("holds a NUL character", where=name, remedy="remove it")
    if _holds_nul(list(texts)):
        raise InputError("tenant, user or key holds a NUL character", remedy="remove it")


def _holds_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case list():
            return any(_holds_nul(item) for item in value)
        case dict():
            return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
    return False

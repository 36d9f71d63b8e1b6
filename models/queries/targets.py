"""Targets of notifications: who of a tenant is told, where, and of what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.errors import InputError, NotFoundError, SpecError
from models.notices import ASKABLE, OF_A_JOB, OPENAI_TYPES, Format, Kind, Notice
from models.queries.tenants import no_such_tenant
from models.spec import JobSpec
from models.tables import Delivery, Job, JobTarget, Target, Tenant

_NAME = re.compile(r"[A-Za-z0-9][\w .:/-]{0,63}")
_FIRST_TENANT = "default"
_SHORTEST_WAIT_SECONDS = 60.0  # longer than any transaction that queues a job


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    name: str
    tenant: str
    kind: str
    format: str
    address: str  # what may be shown of it
    events: tuple[str, ...]
    wait_seconds: float
    budget_percent: float
    created_at: datetime
    created_by: str
    waiting: int  # messages to be sent
    failed: int  # messages given up that are still in the log
    jobs: int  # that name it


def add_target(
    session: Session,
    *,
    tenant: str,
    name: str,
    kind: Kind,
    format: Format,  # noqa: A002 (its name everywhere)
    sealed_url: str,
    sealed_secret: str | None,
    shown: str,
    events: Sequence[Notice],
    wait_seconds: float,
    budget_percent: float,
    created_by: str,
) -> int:
    """Put a target on record; returns its id. Raises InputError, NotFoundError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "a target's name has 1 to 64 letters, digits, spaces and . : / - _",
            where="name",
            remedy="give another name",
        )
    require_askable(events, format)
    if wait_seconds < _SHORTEST_WAIT_SECONDS:
        raise InputError(
            f"a wait is too long after {_SHORTEST_WAIT_SECONDS:g} seconds at the earliest",
            where="wait",
            remedy="give a longer one",
        )
    if not 0 < budget_percent <= 100:  # noqa: PLR2004 (percent)
        raise InputError("a share is over 0 and at most 100", where="budget", remedy="give 80")
    if tenant == _FIRST_TENANT:  # there before its first job
        session.execute(upsert(Tenant).values(name=tenant).on_conflict_do_nothing())
    tenant_id = session.scalar(select(Tenant.id).where(Tenant.name == tenant))
    if tenant_id is None:
        raise no_such_tenant(tenant)
    made = Target(
        tenant_id=tenant_id,
        name=name,
        kind=kind,
        format=format,
        sealed_url=sealed_url,
        sealed_secret=sealed_secret,
        shown=shown,
        events=[event.value for event in events],
        wait_seconds=wait_seconds,
        budget_percent=budget_percent,
        created_by=created_by,
    )
    session.add(made)
    try:
        session.flush()
    except IntegrityError:
        raise InputError(
            f"tenant {tenant} has a target {name!r} already",
            where="name",
            remedy="`celora notify remove` it first, or give another name",
        ) from None
    return made.id


def list_targets(session: Session, tenant: str | None = None) -> list[TargetView]:
    rows = session.execute(_TARGETS, {"tenant": tenant}).mappings()
    return [TargetView(**{**row, "events": tuple(row["events"])}) for row in rows]


def find_target(session: Session, tenant: str, name: str) -> Target:
    """Raises NotFoundError."""
    found = session.scalars(
        select(Target)
        .join(Tenant, Tenant.id == Target.tenant_id)
        .where(Tenant.name == tenant, Target.name == name, Target.removed_at.is_(None))
    ).one_or_none()
    if found is None:
        raise NotFoundError(
            f"tenant {tenant} has no target {name!r}",
            remedy="`celora notify list` shows them;"
            f" `celora notify add {name} --tenant {tenant}` makes it",
        )
    return found


def remove_target(session: Session, tenant: str, name: str) -> int:
    """Forget a target's address; its log stays. Returns how many messages are not sent any more.

    Raises NotFoundError.
    """
    target = find_target(session, tenant, name)
    target.removed_at = func.clock_timestamp()
    target.sealed_url = target.sealed_secret = None
    session.execute(delete(JobTarget).where(JobTarget.target_id == target.id))
    dropped = session.execute(
        update(Delivery)
        .where(Delivery.target_id == target.id, Delivery.state == "waiting")
        .values(state="dropped", ended_at=func.clock_timestamp(), cause="its target was removed")
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return len(dropped.all())


def name_targets(session: Session, job: Job, spec: JobSpec) -> None:
    """Let the targets that a new job's specification names hear of it. Raises SpecError."""
    for name in dict.fromkeys(spec.notify):
        try:
            target = find_target(session, job.tenant.name, name)
        except NotFoundError as error:
            raise SpecError(error.what, where="notify", remedy=error.remedy) from None
        events = [Notice(event) for event in spec.notify_on]
        hear_of(session, job, target, events, spec.notify_wait_seconds, field="notify_on")


def hear_of(
    session: Session,
    job: Job,
    target: Target,
    events: Sequence[Notice],
    wait_seconds: float | None,
    *,
    field: str = "on",
) -> None:
    """Let a target hear of one job, beside its tenant's. Raises SpecError, InputError."""
    if target.tenant_id != job.tenant_id:
        raise InputError(
            f"job {job.id} belongs to another tenant", where="job", remedy="name a target of its"
        )
    if target.format == Format.OPENAI and (unknown := set(events) - set(OPENAI_TYPES)):
        raise SpecError(
            f"target {target.name!r} has OpenAI's format, which knows no {min(unknown)!r}",
            where=field,
            remedy=f"use {', '.join(OPENAI_TYPES)}",
        )
    waits = wait_seconds or target.wait_seconds
    values = {
        "events": [event.value for event in events],
        "wait_seconds": wait_seconds,
        "look_at": func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, waits)
        if Notice.WAITING in events
        else None,
    }
    session.execute(
        upsert(JobTarget)
        .values(job_id=job.id, target_id=target.id, **values)
        .on_conflict_do_update(index_elements=["job_id", "target_id"], set_=values)
    )


def require_askable(events: Sequence[Notice], format: Format, *, of_a_job: bool = False) -> None:  # noqa: A002
    """Raise InputError where a target cannot be told of these."""
    known: Sequence[Notice] = OF_A_JOB if of_a_job else ASKABLE
    if format is Format.OPENAI:
        known = tuple(OPENAI_TYPES)
    for event in events:
        if event not in known:
            raise InputError(
                f"this target cannot be told of {event.value!r}",
                where="on",
                remedy=f"use {', '.join(known)}",
            )


_TARGETS = text("""
    SELECT targets.name, tenants.name AS tenant, kind, format, shown AS address, events,
           wait_seconds, budget_percent, targets.created_at, created_by,
           (SELECT count(*) FROM deliveries
            WHERE target_id = targets.id AND state = 'waiting') AS waiting,
           (SELECT count(*) FROM deliveries
            WHERE target_id = targets.id AND state = 'failed') AS failed,
           (SELECT count(*) FROM job_targets WHERE target_id = targets.id) AS jobs
    FROM notification_targets AS targets JOIN tenants ON tenants.id = targets.tenant_id
    WHERE removed_at IS NULL AND (CAST(:tenant AS text) IS NULL OR tenants.name = :tenant)
    ORDER BY tenants.name, targets.name
""")

"""Tenants and their users as an administrator sees them: weight, limits, and what they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import InputError, NotFoundError
from models.queries.history import WAKE_CHANNEL
from models.queries.lanes import user_id_of
from models.queries.shares import (
    SHARES,
    TENANT_DISK,
    TENANT_MONTH,
    USER_LIMIT,
    USER_MONTH,
    share_parameters,
)
from models.tables import Tenant, User

USER_LIMITS = ("max_running_jobs", "max_queued_jobs", "gpu_hours_per_month", "disk_bytes")
TENANT_SETTINGS = (
    "weight",
    *USER_LIMITS,
    *(f"user_{name}" for name in USER_LIMITS),
    "may_preempt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """One user, with the limits that hold for it: its own, else the tenant's for its users."""

    name: str
    max_running_jobs: int | None
    max_queued_jobs: int | None
    gpu_hours_per_month: float | None
    disk_bytes: int | None
    running: int  # placed or running on a GPU
    gpu_hours_this_month: float
    disk_used_bytes: int
    over_limit: str | None  # the limit that makes its jobs wait right now


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantView:
    name: str
    weight: float
    share: float  # recent GPU-seconds over weight: the smallest goes first
    max_running_jobs: int | None
    max_queued_jobs: int | None
    gpu_hours_per_month: float | None
    disk_bytes: int | None
    may_preempt: bool
    running: int
    queued: int  # prepared, waiting for a GPU
    pending: int  # waiting to be prepared
    gpu_hours_this_month: float
    disk_used_bytes: int
    over_limit: str | None
    users: tuple[UserView, ...]


def list_tenants(session: Session, name: str | None = None) -> list[TenantView]:
    """All tenants, or one, by name. Raises NotFoundError for one that there is not."""
    users: dict[int, list[UserView]] = {}
    for row in session.execute(_USERS, share_parameters()).mappings():
        view = UserView(**{key: value for key, value in row.items() if key != "tenant_id"})
        users.setdefault(row["tenant_id"], []).append(view)
    rows = session.execute(_TENANTS, {**share_parameters(), "only": name}).mappings().all()
    if name is not None and not rows:
        raise no_such_tenant(name)
    return [
        TenantView(
            users=tuple(users.get(row["id"], ())),
            **{key: value for key, value in row.items() if key != "id"},
        )
        for row in rows
    ]


def change_tenant(session: Session, name: str, changes: dict[str, Any]) -> None:
    """Set some of TENANT_SETTINGS; None takes a limit away. The tenant is made if it is new.

    Raises InputError.
    """
    _require_possible(changes, TENANT_SETTINGS)
    session.execute(upsert(Tenant).values(name=name).on_conflict_do_nothing())
    if changes:
        session.execute(update(Tenant).where(Tenant.name == name).values(**changes))
    _wake(session)


def change_user(session: Session, tenant: str, name: str, changes: dict[str, Any]) -> None:
    """Set some of USER_LIMITS of one user; None: what the tenant says for its users.

    Raises NotFoundError, InputError.
    """
    _require_possible(changes, USER_LIMITS)
    tenant_id = session.scalar(select(Tenant.id).where(Tenant.name == tenant))
    if tenant_id is None:
        raise no_such_tenant(tenant)
    user_id = user_id_of(session, tenant_id, name)
    if changes:
        session.execute(update(User).where(User.id == user_id).values(**changes))
    _wake(session)


def no_such_tenant(name: str) -> NotFoundError:
    return NotFoundError(f"there is no tenant {name!r}", remedy="`celora tenants` lists them")


def _require_possible(changes: dict[str, Any], known: tuple[str, ...]) -> None:
    for name, value in changes.items():
        if name not in known:
            raise InputError("there is no such setting", where=name, remedy=", ".join(known))
        if name == "weight" and not (value or 0) > 0:
            raise InputError("must be over 0", where=name, remedy="give 1, 2, 0.5, …")
        if value is not None and value < 0:
            raise InputError("must not be below 0", where=name, remedy="give 0 or more, or `none`")


def _wake(session: Session) -> None:
    session.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})


_USERS = text(f"""
    WITH {SHARES}
    SELECT users.tenant_id, users.name,
           coalesce(users.max_running_jobs, tenants.user_max_running_jobs) AS max_running_jobs,
           coalesce(users.max_queued_jobs, tenants.user_max_queued_jobs) AS max_queued_jobs,
           coalesce(users.gpu_hours_per_month, tenants.user_gpu_hours_per_month)
               AS gpu_hours_per_month,
           coalesce(users.disk_bytes, tenants.user_disk_bytes) AS disk_bytes,
           coalesce(held.jobs, 0) AS running,
           CAST(coalesce(held.gpu_seconds, 0) + coalesce(({USER_MONTH}), 0) AS float8) / 3600
               AS gpu_hours_this_month,
           users.disk_used_bytes, {USER_LIMIT} AS over_limit
    FROM users JOIN tenants ON tenants.id = users.tenant_id
    LEFT JOIN live AS held ON held.tenant_id = users.tenant_id AND held.user_name = users.name
    ORDER BY users.tenant_id, users.name
""")  # noqa: S608 (joined from constants)

_TENANTS = text(f"""
    WITH {SHARES}
    SELECT tenants.id, tenants.name, tenants.weight,
           CAST(shares.gpu_seconds / tenants.weight AS float8) AS share,
           max_running_jobs, max_queued_jobs, gpu_hours_per_month, disk_bytes,
           tenants.may_preempt,
           coalesce((SELECT CAST(sum(jobs) AS int) FROM live WHERE live.tenant_id = tenants.id), 0)
               AS running,
           waiting.queued, waiting.pending,
           CAST(coalesce((SELECT sum(gpu_seconds) FROM live WHERE live.tenant_id = tenants.id), 0)
               + coalesce(({TENANT_MONTH}), 0) AS float8) / 3600
               AS gpu_hours_this_month,
           coalesce(CAST(({TENANT_DISK}) AS bigint), 0) AS disk_used_bytes,
           shares.over_limit
    FROM tenants JOIN shares ON shares.tenant_id = tenants.id
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE state = 'queued') AS queued,
               count(*) FILTER (WHERE state = 'pending') AS pending
        FROM lanes JOIN jobs ON jobs.lane_id = lanes.id AND jobs.state IN ('queued', 'pending')
        WHERE lanes.tenant_id = tenants.id
    ) AS waiting
    WHERE CAST(:only AS text) IS NULL OR tenants.name = :only
    ORDER BY tenants.name
""")  # noqa: S608 (joined from constants)

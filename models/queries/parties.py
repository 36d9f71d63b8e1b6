"""Tenants and users as the forecast sees them: weight, use, and what limits them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from models.forecast import Party, Sharer
from models.queries.shares import (
    PLACEMENT_CHARGE_SECONDS,
    TENANT_DISK,
    TENANT_MONTH,
    USER_MONTH,
)
from models.settings import settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a tenant or of one user, and what is used of them now; none: no limit."""

    of: str  # tenant, user
    who: str  # for people: "tenant a", "user ada of tenant a"
    max_running_jobs: int | None
    max_queued_jobs: int | None
    gpu_hours_per_month: float | None
    disk_bytes: int | None
    running: int
    gpu_seconds: float
    disk_used_bytes: int


@dataclass(frozen=True, slots=True)
class Parties:
    sharers: dict[int, Sharer]
    users: dict[int, Party]
    limits: dict[tuple[str, int], Limits]


def read_parties(
    session: Session, tenant_ids: set[int], user_ids: set[int], live: Sequence[Row[Any]]
) -> Parties:
    """Some tenants and users. `live`: all attempts on GPUs, with tenant_id, user_id and age."""
    limits: dict[tuple[str, int], Limits] = {}
    sharers: dict[int, Sharer] = {}
    users: dict[int, Party] = {}
    half_life = settings().usage_half_life_seconds
    asked = {"ids": list(tenant_ids), "half_life": half_life}
    for row in session.execute(_TENANTS, asked):
        mine = [one for one in live if one.tenant_id == row.id]
        limits["tenant", row.id] = found = _limits(row, "tenant", f"tenant {row.name}", mine)
        charge = row.attempt_gpu_seconds
        sharers[row.id] = Sharer(
            **_party(found, row.month_seconds),
            id=row.id,
            weight=row.weight,
            used=row.used,
            charge=PLACEMENT_CHARGE_SECONDS if charge is None else charge,
            charge_is_measured=charge is not None,
        )
    for row in session.execute(_USERS, {"ids": list(user_ids)}):
        mine = [one for one in live if one.user_id == row.id]
        who = f"user {row.name} of tenant {row.tenant_name}"
        limits["user", row.id] = found = _limits(row, "user", who, mine)
        users[row.id] = Party(**_party(found, row.month_seconds))
    return Parties(sharers, users, limits)


def _limits(row: Row[Any], of: str, who: str, live: Sequence[Row[Any]]) -> Limits:
    return Limits(
        of,
        who,
        row.max_running_jobs,
        row.max_queued_jobs,
        row.gpu_hours_per_month,
        row.disk_bytes,
        len(live),
        row.month_seconds + sum(one.age or 0.0 for one in live),
        row.disk_used_bytes,
    )


def _party(limits: Limits, month_seconds: float) -> dict[str, Any]:
    disk, hours = limits.disk_bytes, limits.gpu_hours_per_month
    return {
        "max_running": math.inf if limits.max_running_jobs is None else limits.max_running_jobs,
        "seconds_allowed": math.inf if hours is None else hours * 3600,
        "seconds_spent": month_seconds,
        "shut": disk is not None and disk <= limits.disk_used_bytes,
    }


_TENANTS = text(f"""
    SELECT id, name, weight, attempt_gpu_seconds, max_running_jobs, max_queued_jobs,
           gpu_hours_per_month, disk_bytes,
           usage_gpu_seconds * power(0.5, least(
               100, extract(epoch FROM statement_timestamp() - usage_at) / :half_life)) AS used,
           CASE WHEN gpu_hours_per_month IS NULL THEN 0
                ELSE coalesce(({TENANT_MONTH}), 0) END AS month_seconds,
           CASE WHEN disk_bytes IS NULL THEN 0
                ELSE coalesce(({TENANT_DISK}), 0)::bigint END AS disk_used_bytes
    FROM tenants WHERE id = ANY (CAST(:ids AS bigint[]))
""")  # noqa: S608 (joined from constants)

_USERS = text(f"""
    SELECT users.id, users.name, tenants.name AS tenant_name,
           coalesce(users.max_running_jobs, tenants.user_max_running_jobs) AS max_running_jobs,
           coalesce(users.max_queued_jobs, tenants.user_max_queued_jobs) AS max_queued_jobs,
           coalesce(users.gpu_hours_per_month, tenants.user_gpu_hours_per_month)
               AS gpu_hours_per_month,
           coalesce(users.disk_bytes, tenants.user_disk_bytes) AS disk_bytes,
           coalesce(({USER_MONTH}), 0) AS month_seconds, users.disk_used_bytes
    FROM users JOIN tenants ON tenants.id = users.tenant_id
    WHERE users.id = ANY (CAST(:ids AS bigint[]))
""")  # noqa: S608 (joined from constants)

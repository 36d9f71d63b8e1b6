"""Whose files lie in the artifact store: what the quotas count, and what `celora storage` shows.

Counted are files that are on record and stand. Prepared data that several people's jobs share is
divided evenly among them, so that all shares together are what the disk holds. Log lines lie in
Postgres: they are shown, and count against no quota.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Use:
    """What one person has of one kind; no tenant: prepared data that no job refers to."""

    tenant: str | None
    user: str | None
    kind: str  # checkpoints, adapters, prepared, uploads, logs
    count: int  # of log lines for logs
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Quota:
    """A person's (or, without a user, a tenant's) limit, and what placement counts against it."""

    tenant: str
    user: str | None
    used_bytes: int
    limit_bytes: int | None


def add_use(session: Session, job_id: str, size_bytes: int) -> None:
    """Count what was just registered (or, negative, deleted) for the job's user.

    One row by its key: this is in the way of every checkpoint. The sweep counts anew.
    """
    session.execute(_ADD, {"job_id": job_id, "size_bytes": size_bytes})


def recount(session: Session) -> int:
    """Make every user's `disk_used_bytes` true; returns how many were not."""
    return len(session.execute(_RECOUNT).all())


def uses(session: Session) -> list[Use]:
    """Everything, by tenant, user and kind; the largest first."""
    session.execute(text("SET LOCAL statement_timeout = '300s'"))  # every log line is measured
    return [Use(*row) for row in session.execute(_USES)]


def quotas(session: Session) -> list[Quota]:
    """Every tenant, each followed by its users."""
    return [Quota(*row) for row in session.execute(_QUOTAS)]


_ADD = text("""
    UPDATE users SET disk_used_bytes = greatest(0, disk_used_bytes + :size_bytes)
    FROM jobs
    WHERE jobs.id = :job_id AND users.tenant_id = jobs.tenant_id AND users.name = jobs.user_name
""")

_FILES = """
    shared AS (
        SELECT prepared_url, tenant_id, user_name,
               count(*) OVER (PARTITION BY prepared_url) AS among
        FROM (
            SELECT DISTINCT prepared_url, tenant_id, user_name FROM jobs
            WHERE prepared_url IS NOT NULL
        ) AS uses
    ), stored AS (
        SELECT tenant_id, user_name, 'checkpoints' AS kind, count(*) AS count,
               sum(size_bytes) AS bytes
        FROM checkpoints JOIN jobs ON jobs.id = checkpoints.job_id
        WHERE deleted_at IS NULL GROUP BY tenant_id, user_name
        UNION ALL
        SELECT tenant_id, user_name, 'adapters', count(*), sum(size_bytes)
        FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
        WHERE deleted_at IS NULL GROUP BY tenant_id, user_name
        UNION ALL
        SELECT tenant_id, user_name, 'prepared', count(*), sum(size_bytes / coalesce(among, 1))
        FROM prepared_data LEFT JOIN shared ON shared.prepared_url = prepared_data.url
        WHERE deleted_at IS NULL GROUP BY tenant_id, user_name
        UNION ALL
        SELECT tenant_id, user_name, 'uploads', count(*), sum(size_bytes)
        FROM files WHERE deleted_at IS NULL GROUP BY tenant_id, user_name
    )
"""

_RECOUNT = text(f"""
    WITH {_FILES}, used AS (
        SELECT users.id, coalesce(sum(stored.bytes), 0) AS bytes
        FROM users LEFT JOIN stored
            ON stored.tenant_id = users.tenant_id AND stored.user_name = users.name
        GROUP BY users.id
    )
    UPDATE users SET disk_used_bytes = used.bytes
    FROM used WHERE used.id = users.id AND users.disk_used_bytes <> used.bytes
    RETURNING users.id
""")  # noqa: S608 (joined from constants)

_USES = text(f"""
    WITH {_FILES}, everything AS (
        SELECT * FROM stored
        UNION ALL
        SELECT tenant_id, user_name, 'logs', count(*), sum(octet_length(line))
        FROM log_lines JOIN jobs ON jobs.id = log_lines.job_id GROUP BY tenant_id, user_name
    )
    SELECT tenants.name, user_name, kind, count, CAST(bytes AS bigint) AS bytes
    FROM everything LEFT JOIN tenants ON tenants.id = everything.tenant_id
    ORDER BY bytes DESC, tenants.name, user_name, kind
""")  # noqa: S608 (as above)

_QUOTAS = text("""
    SELECT tenant, user_name, CAST(used AS bigint), disk_bytes FROM (
        SELECT tenants.name AS tenant, NULL AS user_name,
               coalesce(sum(users.disk_used_bytes), 0) AS used, tenants.disk_bytes
        FROM tenants LEFT JOIN users ON users.tenant_id = tenants.id GROUP BY tenants.id
        UNION ALL
        SELECT tenants.name, users.name, users.disk_used_bytes,
               coalesce(users.disk_bytes, tenants.user_disk_bytes)
        FROM users JOIN tenants ON tenants.id = users.tenant_id
    ) AS quotas
    ORDER BY tenant, user_name NULLS FIRST
""")

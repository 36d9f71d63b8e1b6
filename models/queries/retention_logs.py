"""Log lines that the rules of retention let go. They lie in Postgres alone."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.retention_rules import (
    RULES,
    UNFINISHED,
    TenantRules,
    rule_values,
    take_time,
    with_rules,
)


def expired_logs(session: Session, rules: Sequence[TenantRules]) -> list[str]:
    """Ids of jobs whose log lines go."""
    take_time(session)
    return list(session.scalars(_EXPIRED_LOGS, rule_values(rules)))


def delete_logs(session: Session, job_ids: Sequence[str], limit: int) -> int:
    """Delete so many lines of these jobs at most; returns how many."""
    deleted = session.execute(_DELETE_LOGS, {"job_ids": list(job_ids), "limit": limit})
    return len(deleted.all())


# One step of the index from job to job: what has no lines left costs nothing.
_EXPIRED_LOGS = with_rules(f"""
    WITH RECURSIVE {RULES}, held (job_id) AS (
        (SELECT job_id FROM log_lines ORDER BY job_id LIMIT 1)
        UNION ALL
        SELECT (SELECT job_id FROM log_lines WHERE log_lines.job_id > held.job_id
                ORDER BY job_id LIMIT 1)
        FROM held WHERE held.job_id IS NOT NULL
    ), ranked AS (
        SELECT jobs.id, state, statement_timestamp() - coalesce(finished_at, created_at) AS age,
               max_age, keep, max_bytes, row_number() OVER newest AS place,
               sum(CASE WHEN max_bytes IS NOT NULL THEN (
                   SELECT sum(octet_length(line)) FROM log_lines WHERE log_lines.job_id = jobs.id
               ) END) OVER newest AS bytes
        FROM held JOIN jobs ON jobs.id = held.job_id
        JOIN rules ON rules.tenant_id = jobs.tenant_id AND rules.kind = 'logs'
        WINDOW newest AS (PARTITION BY jobs.tenant_id
                          ORDER BY finished_at DESC NULLS FIRST, jobs.id)
    )
    SELECT id FROM ranked
    WHERE state NOT IN ({UNFINISHED}) AND (age > max_age OR place > keep OR bytes > max_bytes)
    ORDER BY id
""")  # noqa: S608

_DELETE_LOGS = text("""
    DELETE FROM log_lines WHERE id IN (
        SELECT id FROM log_lines WHERE job_id = ANY (CAST(:job_ids AS text[])) LIMIT :limit
    )
    RETURNING id
""")

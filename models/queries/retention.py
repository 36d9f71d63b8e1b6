"""What the rules of retention let go, and the marks that come before files are deleted.

Each `mark_…` changes rows only, in one short transaction: what is marked is promised to nobody any
more, and its files may go. It first locks the jobs in question, as somebody may just be running a
failed one again, and then looks once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from models.errors import InputError
from models.retention import RetentionRules, parse_rules
from models.settings import settings
from models.tables import Tenant

AT_ONCE = 500  # jobs, or prepared data sets, in one transaction


@dataclass(frozen=True, slots=True)
class TenantRules:
    tenant_id: int
    tenant: str
    rules: RetentionRules
    problem: str | None = None  # why its own rules could not be read; the defaults hold then


@dataclass(frozen=True, slots=True)
class Gone:
    """One thing that the rules let go."""

    kind: str  # checkpoints, adapters, prepared
    url: str
    size_bytes: int


Mark = Callable[[Session, Sequence[TenantRules]], list[Gone]]


def rules_of_tenants(session: Session) -> list[TenantRules]:
    """What holds for each tenant; rules that cannot be read are the defaults, with the problem."""
    found = []
    for row in session.execute(select(Tenant.id, Tenant.name, Tenant.retention)):
        try:
            found.append(TenantRules(row.id, row.name, parse_rules(row.retention)))
        except InputError as error:
            found.append(TenantRules(row.id, row.name, RetentionRules(), str(error)))
    return found


def set_rules(session: Session, tenant: str, fields: dict[str, Any]) -> bool:
    """Replace a tenant's own rules; False: there is no such tenant."""
    changed = session.execute(
        update(Tenant)
        .where(Tenant.name == tenant)
        .values(retention=fields)
        .returning(Tenant.id)
        .execution_options(synchronize_session=False)
    )
    return bool(changed.all())


def needed_artifacts() -> str:
    """SQL of the ids of artifacts that something needs, whatever the rules say.

    Whatever else comes to need an adapter joins in here, with another UNION ALL.
    """
    return f"""
        SELECT artifacts.id FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
        WHERE jobs.state IN ({_UNFINISHED})
        UNION ALL  -- the adapter that a job begins with, which may be run again when it failed
        SELECT artifacts.id FROM artifacts JOIN jobs ON jobs.spec ->> 'after' = artifacts.job_id
        WHERE jobs.state IN ({_UNFINISHED}, 'failed')
          AND CAST(jobs.spec ->> 'start_from_adapter' AS boolean)
    """  # noqa: S608 (constants)


def preview(session: Session, rules: Sequence[TenantRules]) -> list[Gone]:
    """What the next sweep would mark; changes nothing."""
    return [
        Gone(*row)
        for statement, values in (
            (_EXPIRED_CHECKPOINTS, _listed(rules, "checkpoints")),
            (_EXPIRED_ARTIFACTS, _listed(rules, "adapters")),
            (_EXPIRED_PREPARED, _prepared_values(rules)),
        )
        for row in session.execute(statement, values)
    ]


def mark_checkpoints(session: Session, rules: Sequence[TenantRules]) -> list[Gone]:
    values = _listed(rules, "checkpoints")
    values["job_ids"] = _lock(session, _CHECKPOINT_JOBS, values)
    return [Gone(*row) for row in session.execute(_MARK_CHECKPOINTS, values)]


def mark_artifacts(session: Session, rules: Sequence[TenantRules]) -> list[Gone]:
    """Adapters and models; their jobs point at them no longer."""
    values = _listed(rules, "adapters")
    values["job_ids"] = _lock(session, _ARTIFACT_JOBS, values)
    return [Gone(*row) for row in session.execute(_MARK_ARTIFACTS, values)]


def mark_prepared(session: Session, rules: Sequence[TenantRules]) -> list[Gone]:
    """The jobs that used it forget it; a failed one that is run again prepares it anew."""
    values = _prepared_values(rules) | {"limit": AT_ONCE}
    urls = session.scalars(_PREPARED_URLS, values).all()
    session.execute(_LOCK_FAILED, {"urls": urls})
    gone = [Gone(*row) for row in session.execute(_MARK_PREPARED, values | {"urls": urls})]
    session.execute(_FORGET_PREPARED, {"urls": [one.url for one in gone]})
    return gone


def expired_logs(session: Session, rules: Sequence[TenantRules]) -> list[str]:
    """Ids of jobs whose log lines go."""
    return list(session.scalars(_EXPIRED_LOGS, _listed(rules, "logs") | {"limit": AT_ONCE}))


def delete_logs(session: Session, job_ids: Sequence[str], limit: int) -> int:
    """Delete so many lines of these jobs at most; returns how many."""
    deleted = session.execute(_DELETE_LOGS, {"job_ids": list(job_ids), "limit": limit})
    return len(deleted.all())


def _listed(rules: Sequence[TenantRules], kind: str) -> dict[str, Any]:
    return {
        "rules": [
            {"tenant_id": one.tenant_id} | getattr(one.rules, kind).model_dump() for one in rules
        ]
    }


def _prepared_values(rules: Sequence[TenantRules]) -> dict[str, Any]:
    return _listed(rules, "prepared") | {
        "default_days": RetentionRules().prepared.max_age_days,
        "orphan_seconds": settings().orphan_seconds,
    }


def _lock(session: Session, statement: TextClause, values: dict[str, Any]) -> list[str]:
    """Lock the jobs; one that is locked by somebody else is left for the next sweep."""
    found = session.scalars(statement, values | {"limit": AT_ONCE}).all()
    return list(session.scalars(_LOCK_JOBS, {"job_ids": found}))


def _statement(sql: str) -> TextClause:
    return text(sql).bindparams(bindparam("rules", type_=JSONB))


_UNFINISHED = "'pending', 'queued', 'running', 'paused'"

_RULES = """
    rules AS MATERIALIZED (
        SELECT tenant_id, failed_max_age_days * interval '1 day' AS failed_max_age,
               max_age_days * interval '1 day' AS max_age, keep, max_bytes
        FROM jsonb_to_recordset(:rules) AS rules (
            tenant_id bigint, max_age_days double precision, failed_max_age_days double precision,
            keep bigint, max_bytes bigint)
    )
"""

_CHECKPOINTS = f"""
    {_RULES}, standing AS (
        SELECT checkpoints.id, job_id, url, size_bytes, tenant_id, state,
               statement_timestamp() - coalesce(finished_at, jobs.created_at) AS age,
               row_number() OVER furthest AS place, sum(size_bytes) OVER newest AS bytes
        FROM checkpoints JOIN jobs ON jobs.id = job_id
        WHERE deleted_at IS NULL
        WINDOW furthest AS (PARTITION BY job_id ORDER BY checkpoints.step DESC,
                            checkpoints.id DESC),
               newest AS (PARTITION BY tenant_id ORDER BY registered_at DESC, checkpoints.id DESC)
    ), expired AS (
        SELECT standing.* FROM standing JOIN rules USING (tenant_id)
        WHERE state = 'completed' AND age > max_age
           OR state IN ('failed', 'cancelled') AND age > failed_max_age
           OR state IN ('completed', 'cancelled') AND (place > keep OR bytes > max_bytes)
    )
"""  # noqa: S608 (joined from constants)

_ARTIFACTS = f"""
    {_RULES}, standing AS (
        SELECT artifacts.id, job_id, url, size_bytes, tenant_id, state,
               statement_timestamp() - artifacts.created_at AS age,
               row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes
        FROM artifacts JOIN jobs ON jobs.id = job_id
        WHERE deleted_at IS NULL
        WINDOW newest AS (PARTITION BY tenant_id ORDER BY artifacts.created_at DESC,
                          artifacts.id DESC)
    ), expired AS (
        SELECT standing.* FROM standing JOIN rules USING (tenant_id)
        WHERE (age > max_age OR state <> 'failed' AND (place > keep OR bytes > max_bytes))
          AND id NOT IN ({needed_artifacts()})
    )
"""  # noqa: S608 (joined from constants)

# A failed job that still has a checkpoint goes on from there, on the same data or not at all.
_PREPARED = f"""
    {_RULES}, standing AS (
        SELECT digest, url, size_bytes, last_used_at FROM prepared_data
        WHERE deleted_at IS NULL AND last_used_at
              < clock_timestamp() - make_interval(secs => :orphan_seconds)
    ), used AS (
        SELECT digest, url, size_bytes, jobs.tenant_id,
               greatest(last_used_at, max(finished_at)) AS used_at,
               bool_or(state IN ({_UNFINISHED}) OR state = 'failed' AND (
                   max_age IS NULL OR finished_at > statement_timestamp() - max_age
                   OR EXISTS (SELECT FROM checkpoints
                              WHERE checkpoints.job_id = jobs.id AND deleted_at IS NULL)
               )) AS needed
        FROM standing JOIN jobs ON jobs.prepared_url = url JOIN rules USING (tenant_id)
        GROUP BY digest, url, size_bytes, last_used_at, jobs.tenant_id
    ), ranked AS (
        SELECT used.*, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes
        FROM used WINDOW newest AS (PARTITION BY tenant_id ORDER BY used_at DESC, digest)
    ), expired AS (
        SELECT digest, url, size_bytes FROM ranked JOIN rules USING (tenant_id)
        GROUP BY digest, url, size_bytes
        HAVING bool_and(NOT needed AND coalesce(
            used_at < statement_timestamp() - max_age OR place > keep OR bytes > max_bytes, false))
        UNION ALL
        SELECT digest, url, size_bytes FROM standing
        WHERE last_used_at < statement_timestamp() - :default_days * interval '1 day'
          AND NOT EXISTS (SELECT FROM jobs WHERE jobs.prepared_url = url)
    )
"""  # noqa: S608 (joined from constants)


def _expired(fragment: str, kind: str) -> TextClause:
    return _statement(f"WITH {fragment} SELECT '{kind}', url, size_bytes FROM expired")  # noqa: S608


_EXPIRED_CHECKPOINTS = _expired(_CHECKPOINTS, "checkpoints")
_EXPIRED_ARTIFACTS = _expired(_ARTIFACTS, "adapters")
_EXPIRED_PREPARED = _expired(_PREPARED, "prepared")

_CHECKPOINT_JOBS = _statement(
    f"WITH {_CHECKPOINTS} SELECT DISTINCT job_id FROM expired ORDER BY job_id LIMIT :limit"  # noqa: S608
)
_ARTIFACT_JOBS = _statement(
    f"WITH {_ARTIFACTS} SELECT DISTINCT job_id FROM expired ORDER BY job_id LIMIT :limit"  # noqa: S608
)
_LOCK_JOBS = text("""
    SELECT id FROM jobs WHERE id = ANY (CAST(:job_ids AS text[]))
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")

_MARK_CHECKPOINTS = _statement(f"""
    WITH {_CHECKPOINTS}
    UPDATE checkpoints SET deleted_at = clock_timestamp()
    FROM expired
    WHERE checkpoints.id = expired.id AND expired.job_id = ANY (CAST(:job_ids AS text[]))
    RETURNING 'checkpoints', checkpoints.url, checkpoints.size_bytes
""")  # noqa: S608

_MARK_ARTIFACTS = _statement(f"""
    WITH {_ARTIFACTS}, marked AS (
        UPDATE artifacts SET deleted_at = clock_timestamp()
        FROM expired
        WHERE artifacts.id = expired.id AND expired.job_id = ANY (CAST(:job_ids AS text[]))
        RETURNING artifacts.job_id, artifacts.url, artifacts.size_bytes
    ), forgotten AS (
        UPDATE jobs SET adapter_url = NULL
        FROM marked WHERE jobs.id = marked.job_id AND jobs.adapter_url = marked.url
    )
    SELECT 'adapters', url, size_bytes FROM marked
""")  # noqa: S608

_PREPARED_URLS = _statement(f"WITH {_PREPARED} SELECT url FROM expired LIMIT :limit")  # noqa: S608

# A retry of one of them waits for us, or we for it: the mark then sees that it is needed.
_LOCK_FAILED = text("""
    SELECT FROM jobs WHERE prepared_url = ANY (CAST(:urls AS text[])) AND state = 'failed'
    ORDER BY tenant_id, id FOR NO KEY UPDATE
""")

# The condition on `last_used_at` is tested once more on the row, after waiting for whoever has it.
_MARK_PREPARED = _statement(f"""
    WITH {_PREPARED}
    UPDATE prepared_data SET deleted_at = clock_timestamp()
    FROM expired
    WHERE prepared_data.digest = expired.digest AND expired.url = ANY (CAST(:urls AS text[]))
      AND prepared_data.deleted_at IS NULL AND prepared_data.last_used_at
          < clock_timestamp() - make_interval(secs => :orphan_seconds)
    RETURNING 'prepared', prepared_data.url, prepared_data.size_bytes
""")  # noqa: S608

_FORGET_PREPARED = text("""
    UPDATE jobs SET prepared_url = NULL,
        stage = CASE WHEN state = 'failed' AND stage = 'train' THEN 'preprocess' ELSE stage END
    WHERE prepared_url = ANY (CAST(:urls AS text[]))
""")

# One step of the index from job to job: what has no lines left costs nothing.
_EXPIRED_LOGS = _statement(f"""
    WITH RECURSIVE {_RULES}, held (job_id) AS (
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
        FROM held JOIN jobs ON jobs.id = held.job_id JOIN rules USING (tenant_id)
        WINDOW newest AS (PARTITION BY tenant_id ORDER BY finished_at DESC NULLS FIRST, jobs.id)
    )
    SELECT id FROM ranked
    WHERE state NOT IN ({_UNFINISHED}) AND (age > max_age OR place > keep OR bytes > max_bytes)
    ORDER BY id LIMIT :limit
""")  # noqa: S608

_DELETE_LOGS = text("""
    DELETE FROM log_lines WHERE id IN (
        SELECT id FROM log_lines WHERE job_id = ANY (CAST(:job_ids AS text[])) LIMIT :limit
    )
    RETURNING id
""")

"""Messages to be sent: written in the transaction of what they tell of, so none is lost or doubled.

Nothing here speaks to anybody. Which targets hear of a job: those of its tenant that ask for the
notice, and those that the job itself names.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from models.notices import OPENAI_TYPES, Notice, said_of
from models.queries.shares import LIVE, TENANT_MONTH, USER_MONTH, share_parameters
from models.states import Purpose
from models.tables import Job

_LOOKED_AT_ONCE = 500

# A new message's id, in SQL: receivers know by it that they have had it before.
MESSAGE_ID = "'evt_' || replace(gen_random_uuid()::text, '-', '')"


def tell(session: Session, job: Job, notice: Notice) -> None:
    """Write what `job`, a locked row with its news, has become, for all who want to hear of it.

    Of an export or a chat nobody is told: who asked for it sits before it.
    """
    if job.purpose != Purpose.TUNE:
        return
    session.execute(
        _TELL,
        {
            "job_id": job.id,
            "tenant_id": job.tenant_id,
            "notice": notice,
            "data": _facts(job),
            "openai": notice in OPENAI_TYPES,
        },
    )


def tell_overdue(session: Session) -> int:
    """Tell of jobs that have waited too long since the last look; returns how many messages.

    A job is told of once a wait: when it becomes too long. A wait begins when the job is submitted,
    resumed, retried, or released by the job it came after; a job that was interrupted keeps its
    place, and its wait. Of many at once so many a target are told of, the rest at the next looks.
    """
    by_tenant = session.execute(_OVERDUE_OF_TENANTS, {"limit": _LOOKED_AT_ONCE}).all()
    by_job = session.execute(_OVERDUE_OF_JOBS, {"limit": _LOOKED_AT_ONCE}).all()
    return len(by_tenant) + len(by_job)


def look_anew(session: Session, job_id: str) -> None:
    """A job that was paused or over waits again: its own rules hold for this wait as well."""
    session.execute(_LOOK_ANEW, {"job_id": job_id})


def tell_budgets(session: Session) -> int:
    """Tell of tenants and users whose month's GPU hours are nearly used up; once a month each."""
    return len(session.execute(_BUDGETS, share_parameters()).all())


def _facts(job: Job) -> dict[str, Any]:
    """What a message may say of a job: never a row of its data, nor where anything lies."""
    return {
        "id": job.id,
        "name": job.name,
        "tenant": job.tenant.name,
        "user": job.user_name,
        "state": job.state,
        "stage": job.stage,
        "base_model": job.base_model,
        "method": job.method,
        "step": job.step,
        "total_steps": job.total_steps,
        "gpu_seconds": round(job.gpu_seconds, 1),
        "error": said_of(job.error),
    }


_TELL = text(f"""
    INSERT INTO deliveries (message_id, target_id, job_id, notice, data)
    SELECT {MESSAGE_ID}, targets.id, :job_id, :notice, :data
    FROM notification_targets AS targets
    LEFT JOIN job_targets ON job_targets.job_id = :job_id AND job_targets.target_id = targets.id
    WHERE targets.tenant_id = :tenant_id AND targets.removed_at IS NULL
      AND (:notice = ANY (targets.events) OR :notice = ANY (job_targets.events))
      AND (targets.format <> 'openai' OR :openai)
""").bindparams(bindparam("data", type_=JSONB))  # noqa: S608 (joined from constants)

# As _facts, for a row of `jobs` joined to its `tenants`.
_FACTS = """
    jsonb_build_object(
        'id', jobs.id, 'name', jobs.name, 'tenant', tenants.name, 'user', jobs.user_name,
        'state', jobs.state, 'stage', jobs.stage, 'base_model', jobs.base_model,
        'method', jobs.method, 'step', jobs.step, 'total_steps', jobs.total_steps,
        'gpu_seconds', jobs.gpu_seconds, 'error', NULL,
        'waited_seconds', round(extract(epoch FROM clock_timestamp() - jobs.queued_at)))
"""

# Of a new target: the jobs that become overdue from now on.
_SEEN = "coalesce(waits_seen_until, created_at - make_interval(secs => wait_seconds))"

# Jobs become overdue in the order in which they were queued: what was looked at is not looked at
# again, however many wait. A target that is being looked at by another dispatcher is skipped.
_OVERDUE_OF_TENANTS = text(f"""
    WITH asking AS MATERIALIZED (
        SELECT id, tenant_id, {_SEEN} AS seen_until,
               clock_timestamp() - make_interval(secs => wait_seconds) AS until
        FROM notification_targets
        WHERE removed_at IS NULL AND format <> 'openai' AND 'waiting' = ANY (events)
          AND {_SEEN} < clock_timestamp() - make_interval(secs => wait_seconds)
        FOR NO KEY UPDATE SKIP LOCKED
    ), late AS MATERIALIZED (  -- with all that were queued at the same moment as the last
        SELECT asking.id AS target_id, found.* FROM asking CROSS JOIN LATERAL (
            SELECT jobs.id AS job_id, jobs.queued_at FROM jobs
            WHERE jobs.tenant_id = asking.tenant_id AND jobs.state IN ('pending', 'queued')
              AND jobs.waits_for IS NULL AND jobs.purpose = 'tune'
              AND jobs.queued_at >= asking.seen_until AND jobs.queued_at < asking.until
            ORDER BY jobs.queued_at FETCH FIRST (:limit) ROWS WITH TIES
        ) AS found
    ), reached AS (
        SELECT target_id, max(queued_at) + interval '1 microsecond' AS moment FROM late
        GROUP BY target_id HAVING count(*) >= :limit
    ), seen AS (
        UPDATE notification_targets SET waits_seen_until = coalesce(moment, asking.until)
        FROM asking LEFT JOIN reached ON target_id = asking.id
        WHERE asking.id = notification_targets.id
    )
    INSERT INTO deliveries (message_id, target_id, job_id, notice, data)
    SELECT {MESSAGE_ID}, target_id, jobs.id, 'waiting', {_FACTS}
    FROM late JOIN jobs ON jobs.id = late.job_id JOIN tenants ON tenants.id = jobs.tenant_id
    RETURNING id
""")  # noqa: S608 (joined from constants)

_LOOK_ANEW = text("""
    UPDATE job_targets
    SET look_at = clock_timestamp()
        + make_interval(secs => coalesce(job_targets.wait_seconds, targets.wait_seconds))
    FROM notification_targets AS targets
    WHERE job_id = :job_id AND targets.id = target_id AND 'waiting' = ANY (job_targets.events)
""")

# A job's own rule is looked at when its wait would be too long, and again as long as it is not over
# and has not been told of.
_OVERDUE_OF_JOBS = text(f"""
    WITH due AS MATERIALIZED (
        SELECT job_targets.job_id, job_targets.target_id,
               make_interval(secs => coalesce(job_targets.wait_seconds, targets.wait_seconds))
                   AS allowed
        FROM job_targets JOIN notification_targets AS targets ON targets.id = target_id
        WHERE look_at <= clock_timestamp()
        ORDER BY look_at LIMIT :limit
        FOR NO KEY UPDATE OF job_targets SKIP LOCKED
    ), found AS MATERIALIZED (
        SELECT due.*, {_FACTS} AS data,
               jobs.state IN ('completed', 'failed', 'cancelled') AS is_over,
               jobs.state IN ('pending', 'queued') AND jobs.waits_for IS NULL AS waits,
               jobs.queued_at + allowed AS too_long_at
        FROM due JOIN jobs ON jobs.id = due.job_id JOIN tenants ON tenants.id = jobs.tenant_id
    ), looked AS (
        UPDATE job_targets
        SET look_at = CASE
            WHEN is_over OR waits AND too_long_at <= clock_timestamp() THEN NULL
            WHEN waits THEN too_long_at
            ELSE greatest(too_long_at, clock_timestamp() + least(allowed, interval '1 hour'))
        END
        FROM found
        WHERE job_targets.job_id = found.job_id AND job_targets.target_id = found.target_id
    )
    INSERT INTO deliveries (message_id, target_id, job_id, notice, data)
    SELECT {MESSAGE_ID}, target_id, job_id, 'waiting', data
    FROM found WHERE waits AND too_long_at <= clock_timestamp()
    RETURNING id
""")  # noqa: S608 (joined from constants)

_BUDGETS = text(f"""
    WITH asking AS MATERIALIZED (
        SELECT id, tenant_id, budget_percent FROM notification_targets
        WHERE removed_at IS NULL AND format <> 'openai' AND 'budget' = ANY (events)
    ), {LIVE}, used AS (
        SELECT asking.id AS target_id, budget_percent, tenants.name AS tenant,
               CAST(NULL AS text) AS user_name, gpu_hours_per_month AS allowed,
               coalesce((SELECT sum(gpu_seconds) FROM live WHERE live.tenant_id = tenants.id), 0)
                   + coalesce(({TENANT_MONTH}), 0) AS seconds
        FROM asking JOIN tenants ON tenants.id = asking.tenant_id
        WHERE gpu_hours_per_month IS NOT NULL
        UNION ALL
        SELECT asking.id, budget_percent, tenants.name, users.name,
               coalesce(users.gpu_hours_per_month, tenants.user_gpu_hours_per_month),
               coalesce(held.gpu_seconds, 0) + coalesce(({USER_MONTH}), 0)
        FROM asking JOIN tenants ON tenants.id = asking.tenant_id
        JOIN users ON users.tenant_id = tenants.id
        LEFT JOIN live AS held ON held.tenant_id = tenants.id AND held.user_name = users.name
        WHERE coalesce(users.gpu_hours_per_month, tenants.user_gpu_hours_per_month) IS NOT NULL
    )
    INSERT INTO deliveries (message_id, target_id, notice, data, once_key)
    SELECT {MESSAGE_ID}, target_id, 'budget',
           jsonb_build_object(
               'tenant', tenant, 'user', user_name, 'month', month,
               'gpu_hours_used', round(CAST(seconds / 3600 AS numeric), 2),
               'gpu_hours_per_month', allowed, 'percent', budget_percent),
           format('budget %s %s %s', month, budget_percent, coalesce('user ' || user_name, 'all'))
    FROM used, to_char(statement_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM') AS month
    WHERE seconds >= allowed * 3600 * budget_percent / 100
    ON CONFLICT (target_id, once_key) WHERE once_key IS NOT NULL DO NOTHING
    RETURNING id
""")  # noqa: S608 (joined from constants)

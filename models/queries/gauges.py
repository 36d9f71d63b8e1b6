"""How many of what there are right now, for monitoring: each counted along an index."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.gpus import list_gpus


def live_jobs(session: Session) -> dict[str, int]:
    """Jobs that are not over, by state."""
    return {state: int(count) for state, count in session.execute(_LIVE)}


def ended_jobs(session: Session) -> dict[str, int]:
    """Jobs by how they ended, since ever; those of the last minute may not be counted yet."""
    row = session.execute(_ENDED).one()
    return {"completed": row.completed, "failed": row.failed, "cancelled": row.cancelled}


def gpu_states(session: Session) -> dict[str, int]:
    return dict(Counter(gpu.state for gpu in list_gpus(session)))


_LIVE = text("""
    SELECT 'pending', count(*) FROM jobs WHERE state = 'pending'
    UNION ALL
    SELECT 'queued', count(*) FROM jobs WHERE state = 'queued' AND waits_for IS NULL
    UNION ALL
    SELECT 'waiting_for_a_job', count(*) FROM jobs WHERE state = 'queued' AND waits_for IS NOT NULL
    UNION ALL
    SELECT 'running', count(*) FROM jobs WHERE state = 'running'
""")

_ENDED = text("""
    SELECT coalesce(sum(jobs_completed), 0)::bigint AS completed,
           coalesce(sum(jobs_failed), 0)::bigint AS failed,
           coalesce(sum(jobs_cancelled), 0)::bigint AS cancelled
    FROM tenant_days
""")

"""Which job goes next, and where: preparation for CPU workers, and a free GPU for the best job.

One dispatcher places at a time, so that no limit can be raced; the others find the lock taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.fence import Exclusive, try_exclusive
from models.states import Stage

# What a placement counts before it has used anything, in GPU-seconds: without it the tenant with
# the smallest sum would get every GPU that is free at that moment, and hold them all for hours.
PLACEMENT_CHARGE_SECONDS = 60.0

# A tenant's share: recent use (decayed to now), what its live attempts have used so far, and the
# charge for each, over its weight. The smallest goes first. All at one instant, so that equal use
# is equal.
TENANT_SHARES = """
    live AS (
        SELECT jobs.tenant_id,
               count(*) * :placement_charge + sum(extract(
                   epoch FROM statement_timestamp() - coalesce(claimed_at, statement_timestamp())
               )) AS gpu_seconds
        FROM attempts JOIN jobs ON jobs.id = attempts.job_id
        WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NOT NULL
        GROUP BY jobs.tenant_id
    ), shares AS (
        SELECT tenants.id AS tenant_id, weight,
               coalesce(live.gpu_seconds, 0) + usage_gpu_seconds * power(0.5, least(
                   100, extract(epoch FROM statement_timestamp() - usage_at) / :half_life
               )) AS gpu_seconds
        FROM tenants LEFT JOIN live ON live.tenant_id = tenants.id
    )
"""

# The probe reads ix_jobs_queue from its front, for each tenant: it costs the same with a thousand
# and a million jobs queued. It passes over the few jobs that are placed and not yet claimed.
_BEST_JOB = text(f"""
    WITH {TENANT_SHARES}
    SELECT best.id, best.base_model
    FROM shares CROSS JOIN LATERAL (
        SELECT id, base_model FROM jobs
        WHERE jobs.tenant_id = shares.tenant_id AND state = 'queued'
          AND NOT EXISTS (
              SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
          AND id <> ALL (CAST(:passed_over AS text[]))
        ORDER BY priority DESC, queued_at, id
        LIMIT 1
    ) AS best
    ORDER BY shares.gpu_seconds / weight, shares.tenant_id
    LIMIT 1
""")  # noqa: S608 (joined from constants of this file)

_FREE_GPUS = text("""
    SELECT id, queue, loaded_base FROM gpus
    WHERE reported = 'idle' AND NOT cordoned AND stopped_at IS NULL
      AND heartbeat_at > clock_timestamp() - make_interval(secs => :stale_seconds)
      AND NOT EXISTS (
          SELECT FROM attempts WHERE attempts.gpu_id = gpus.id AND attempts.ended_at IS NULL)
    ORDER BY id
    FOR NO KEY UPDATE SKIP LOCKED
""")

# Tenants take turns, each with its own best first, so that a flood of one holds up no other.
_NEXT_TO_PREPARE = text("""
    WITH preparing AS (
        SELECT jobs.tenant_id, count(*) AS jobs
        FROM attempts JOIN jobs ON jobs.id = attempts.job_id
        WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NULL
        GROUP BY jobs.tenant_id
    ), room AS (
        SELECT greatest(0, :in_flight - coalesce(sum(jobs), 0)) AS jobs FROM preparing
    )
    SELECT next.id
    FROM tenants LEFT JOIN preparing ON preparing.tenant_id = tenants.id
    CROSS JOIN LATERAL (
        SELECT id, queued_at, row_number() OVER () + coalesce(preparing.jobs, 0) AS turn
        FROM (
            SELECT id, queued_at FROM jobs
            WHERE jobs.tenant_id = tenants.id AND state = 'pending'
              AND NOT EXISTS (
                  SELECT FROM attempts
                  WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
            ORDER BY priority DESC, queued_at, id
            LIMIT (SELECT jobs FROM room)
        ) AS front
    ) AS next
    ORDER BY next.turn, next.queued_at
    LIMIT (SELECT jobs FROM room)
""")

# Attempt, ticket and event in one statement with the raised fence. A job that someone else has
# locked (its owner cancels it, say) is passed over, not waited for.
_PLACE = text("""
    WITH choice AS (
        SELECT * FROM unnest(
            CAST(:job_ids AS text[]), CAST(:gpu_ids AS bigint[]), CAST(:queues AS text[])
        ) AS choice (job_id, gpu_id, queue)
    ), locked AS (
        SELECT jobs.id, choice.gpu_id, choice.queue
        FROM jobs JOIN choice ON choice.job_id COLLATE "C" = jobs.id
        WHERE jobs.state = :state
        FOR NO KEY UPDATE OF jobs SKIP LOCKED
    ), placed AS (
        UPDATE jobs SET fence = fence + 1
        FROM locked WHERE jobs.id = locked.id
        RETURNING jobs.id, jobs.fence, jobs.stage, locked.gpu_id, locked.queue,
                  coalesce(CAST(jobs.spec ->> 'evaluate' AS boolean), true) AS evaluate
    ), attempt AS (
        INSERT INTO attempts (job_id, fence, gpu_id, first_stage)
        SELECT id, fence, gpu_id, stage FROM placed
    ), ticket AS (
        INSERT INTO outbox (job_id, fence, stage, queue, evaluate)
        SELECT id, fence, stage, queue, evaluate FROM placed
    ), event AS (
        INSERT INTO events (job_id, kind, message, data)
        SELECT id, 'placed', stage || ': sent to ' || queue,
               jsonb_build_object('fence', fence, 'queue', queue)
        FROM placed
    )
    SELECT id, fence, stage, gpu_id, queue, pg_notify('celora_job', id) FROM placed
""")


@dataclass(frozen=True, slots=True)
class Placement:
    """An attempt that has just been made; its ticket waits in the outbox."""

    job_id: str
    fence: int
    stage: Stage
    gpu_id: int | None
    queue: str


@dataclass(frozen=True, slots=True)
class _FreeGpu:
    id: int
    queue: str
    loaded_base: str | None


def place_preprocess(session: Session, limit: int, *, queue: str = "celora.cpu") -> int:
    """Send the next pending jobs to be prepared, until `limit` wait or run; returns how many.

    0 as well when another dispatcher is placing.
    """
    if not try_exclusive(session, Exclusive.PLACE):
        return 0
    job_ids = list(session.scalars(_NEXT_TO_PREPARE, {"in_flight": limit}))
    if not job_ids:
        return 0
    return len(_place(session, "pending", job_ids, [None] * len(job_ids), [queue] * len(job_ids)))


def place_jobs(
    session: Session, *, stale_seconds: float, half_life_seconds: float
) -> list[Placement]:
    """Give every free GPU its job: the best job first, then the GPU that suits it best.

    Free: a heartbeat younger than `stale_seconds` on the database's clock, reported idle, not
    cordoned, no live attempt. Empty as well when another dispatcher is placing.
    """
    if not try_exclusive(session, Exclusive.PLACE):
        return []
    free = [_FreeGpu(*row) for row in session.execute(_FREE_GPUS, {"stale_seconds": stale_seconds})]
    placements: list[Placement] = []
    passed_over: list[str] = []
    while free:
        best = session.execute(
            _BEST_JOB,
            {
                "placement_charge": PLACEMENT_CHARGE_SECONDS,
                "half_life": half_life_seconds,
                "passed_over": passed_over,
            },
        ).one_or_none()
        if best is None:
            break
        gpu = _best_gpu(free, best.base_model)
        placed = _place(session, "queued", [best.id], [gpu.id], [gpu.queue])
        if placed:
            placements += placed
            free.remove(gpu)
        else:
            passed_over.append(best.id)
    return placements


def _best_gpu(free: Sequence[_FreeGpu], base_model: str) -> _FreeGpu:
    """One that has the job's base in memory, else one whose memory holds none that others want."""
    return min(free, key=lambda gpu: (gpu.loaded_base != base_model, gpu.loaded_base is not None))


def _place(
    session: Session,
    state: str,
    job_ids: Sequence[str],
    gpu_ids: Sequence[int | None],
    queues: Sequence[str],
) -> list[Placement]:
    rows = session.execute(
        _PLACE, {"job_ids": job_ids, "gpu_ids": gpu_ids, "queues": queues, "state": state}
    )
    return [Placement(row[0], row[1], Stage(row[2]), row[3], row[4]) for row in rows]

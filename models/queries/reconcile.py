"""Repair what was lost on the way: workers that died, GPUs that left, tickets that never came."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from models.queries.fence import Exclusive, try_exclusive
from models.queries.settle import settle
from models.states import Outcome
from models.tables import Attempt, Job

_EXPIRED = Attempt.lease_until < func.clock_timestamp()

# Between two sendings of one ticket that nobody claims.
_LONGEST_PAUSE_SECONDS = 60.0


def expire_leases(session: Session) -> list[str]:
    """End the attempts whose lease has run out as lost; returns the job ids.

    Their GPUs are unknown from now on: a trainer may still live there until its worker says no.
    """
    found = session.execute(
        select(Attempt.job_id, Attempt.gpu_id).where(Attempt.ended_at.is_(None), _EXPIRED)
    ).all()
    if not found:
        return []
    session.execute(_LOCK_GPUS, {"gpu_ids": [row.gpu_id for row in found if row.gpu_id]})
    ended: list[str] = []
    gpu_of = {row.job_id: row.gpu_id for row in found}
    for job, now in _lock_jobs(session, list(gpu_of)):
        if settle(
            session, job, now, Outcome.LOST, only_if=_EXPIRED, reason="its lease was not renewed"
        ):
            ended.append(job.id)
    in_doubt = [gpu_of[job_id] for job_id in ended if gpu_of[job_id]]
    session.execute(_DOUBT_GPUS, {"gpu_ids": in_doubt})
    return ended


def withdraw_unclaimed(session: Session, stale_seconds: float) -> list[str]:
    """Take back placements that nobody claimed on a GPU that is gone or held; returns the job ids.

    The fence goes up, so that a ticket that is still found later is stale.
    """
    job_ids = session.scalars(_GONE, {"stale_seconds": stale_seconds}).all()
    unclaimed = Attempt.claimed_at.is_(None) & Attempt.gpu_id.is_not(None)
    return [
        job.id
        for job, now in _lock_jobs(session, job_ids)
        if settle(session, job, now, Outcome.WITHDRAWN, only_if=unclaimed)
    ]


def resend_unclaimed(session: Session, resend_seconds: float) -> int:
    """Publish once more what no worker has claimed for that long; returns how many tickets.

    An attempt waits for its first claim, or for the claim of the stage that became due when the
    one before was done (the chain's tail was lost). One that still waits for the relay is left.
    Where nobody consumes at all the earlier tickets are still in the queue, which cannot be known
    from here: the pauses double, up to a minute. Longer ones would leave fewer tickets behind after
    a night without a worker, but a job whose ticket was purged would wait for them as long.
    """
    if not try_exclusive(session, Exclusive.RECONCILE):
        return 0
    pauses = {"resend_seconds": resend_seconds, "longest_seconds": _LONGEST_PAUSE_SECONDS}
    return len(session.execute(_RESEND, pauses).all())


def _lock_jobs(session: Session, job_ids: Sequence[str]) -> list[tuple[Job, datetime]]:
    """Lock jobs in the order of their tenants, whose rows `settle` may change after.

    One that is locked is skipped: whoever has it may be ending the attempt, else it is met in the
    next pass.
    """
    if not job_ids:
        return []
    rows = session.execute(
        select(Job, func.clock_timestamp())
        .where(Job.id.in_(job_ids))
        .order_by(Job.tenant_id, Job.id)
        .with_for_update(key_share=True, skip_locked=True, of=Job)
        .execution_options(populate_existing=True)
    )
    return [(job, now) for job, now in rows]


_LOCK_GPUS = text("""
    SELECT FROM gpus WHERE id = ANY (CAST(:gpu_ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
""")

_DOUBT_GPUS = text("""
    UPDATE gpus SET reported = 'unknown', reason = 'a lease ran out here'
    WHERE id = ANY (CAST(:gpu_ids AS bigint[]))
""")

_GONE = text("""
    SELECT attempts.job_id
    FROM attempts JOIN gpus ON gpus.id = attempts.gpu_id
    WHERE attempts.ended_at IS NULL AND attempts.claimed_at IS NULL
      AND (gpus.stopped_at IS NOT NULL OR gpus.reported = 'held'
           OR gpus.heartbeat_at <= clock_timestamp() - make_interval(secs => :stale_seconds))
""")

# The next pause is as long as all before it together: no count is needed for it to double, and
# tickets that were sent can be pruned.
_RESEND = text("""
    INSERT INTO outbox (job_id, fence, stage, queue, evaluate)
    SELECT attempts.job_id, attempts.fence, jobs.stage, latest.queue, latest.evaluate
    FROM attempts
    JOIN jobs ON jobs.id = attempts.job_id
    CROSS JOIN LATERAL (
        SELECT queue, evaluate, sent_at FROM outbox
        WHERE outbox.job_id = attempts.job_id AND outbox.fence = attempts.fence
        ORDER BY id DESC LIMIT 1
    ) AS latest
    CROSS JOIN LATERAL (
        SELECT coalesce(attempts.stage_at, attempts.placed_at) AS due_at
    ) AS waits
    WHERE attempts.ended_at IS NULL
      AND jobs.stage <> ALL (attempts.claimed_stages)
      AND waits.due_at < clock_timestamp() - make_interval(secs => :resend_seconds)
      AND latest.sent_at < clock_timestamp() - greatest(
          make_interval(secs => :resend_seconds),
          least(
              latest.sent_at - waits.due_at, make_interval(secs => :longest_seconds)))
    RETURNING id
""")

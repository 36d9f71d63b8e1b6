"""Urgent jobs that find no GPU: a preemptible job makes room, the one that loses least."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.fence import Exclusive, try_exclusive
from models.queries.history import add_event
from models.queries.jobs import request_stop
from models.queries.lanes import FITS
from models.queries.shares import SHARES, USER_LIMIT, share_parameters
from models.states import StopReason

# A GPU whose job has just made room is not idle at once; the urgent job gets it in a moment.
_PATIENCE_SECONDS = 30.0
_AT_ONCE = 16


def preempt(session: Session) -> list[tuple[str, str]]:
    """Ask jobs to make room for urgent ones that wait; returns (urgent job, victim) pairs.

    Only after `place_jobs`: who is still queued then has found no free GPU. One victim for each
    urgent job; nothing while its tenant or user is over a limit.
    """
    if not try_exclusive(session, Exclusive.PLACE):
        return []
    pairs: list[tuple[str, str]] = []
    for job_id, need_id in session.execute(
        _URGENT, {**share_parameters(), "patience": _PATIENCE_SECONDS, "at_once": _AT_ONCE}
    ).all():
        victim = session.execute(_VICTIM, {"need_id": need_id}).one_or_none()
        if victim is None:
            continue
        request_stop(session, victim.job_id, StopReason.PREEMPT)
        session.execute(_MARK, {"attempt_id": victim.id, "job_id": job_id})
        add_event(
            session, victim.job_id, "preempted_for", f"makes room for the urgent job {job_id}"
        )
        add_event(session, job_id, "preempts", f"{victim.job_id} makes room for it")
        pairs.append((job_id, victim.job_id))
    return pairs


_URGENT = text(f"""
    WITH {SHARES}
    SELECT front.id, lanes.need_id
    FROM shares
    JOIN lanes ON lanes.tenant_id = shares.tenant_id AND lanes.urgent
    JOIN tenants ON tenants.id = lanes.tenant_id
    JOIN users ON users.id = lanes.user_id
    LEFT JOIN live AS held ON held.tenant_id = users.tenant_id AND held.user_name = users.name
    CROSS JOIN LATERAL (
        SELECT id, turn_at FROM jobs
        WHERE lane_id = lanes.id AND state = 'queued' AND waits_for IS NULL
          AND NOT EXISTS (
              SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
        ORDER BY turn_at, id
        LIMIT :at_once
    ) AS front
    WHERE shares.may_preempt AND shares.over_limit IS NULL AND {USER_LIMIT} IS NULL
      AND NOT EXISTS (
          SELECT FROM attempts
          WHERE preempted_for = front.id
            AND (ended_at IS NULL
                 OR ended_at > clock_timestamp() - make_interval(secs => :patience)))
    ORDER BY shares.gpu_seconds / shares.weight, shares.tenant_id, front.turn_at, front.id
    LIMIT :at_once
""")  # noqa: S608 (joined from constants)

# What it would lose at worst: all since its newest checkpoint, or since it was claimed.
_VICTIM = text(f"""
    SELECT attempts.id, attempts.job_id
    FROM attempts
    JOIN jobs ON jobs.id = attempts.job_id
    JOIN lanes ON lanes.id = jobs.lane_id
    JOIN gpus ON gpus.id = attempts.gpu_id
    JOIN gpu_needs ON gpu_needs.id = :need_id AND {FITS}
    LEFT JOIN LATERAL (
        SELECT max(registered_at) AS saved_at FROM checkpoints
        WHERE checkpoints.job_id = jobs.id AND checkpoints.fence = attempts.fence
    ) AS newest ON true
    WHERE attempts.ended_at IS NULL AND attempts.claimed_at IS NOT NULL
      AND jobs.spec ->> 'preemptible' = 'true' AND NOT lanes.urgent
      AND jobs.stop_requested IS NULL AND NOT gpus.cordoned
    ORDER BY greatest(attempts.stage_at, newest.saved_at) DESC, attempts.id
    LIMIT 1
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
""")  # noqa: S608 (joined from constants)

_MARK = text("UPDATE attempts SET preempted_for = :job_id WHERE id = :attempt_id")

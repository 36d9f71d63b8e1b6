"""Who may write to a job: its row's lock, and the fence of its live attempt."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from models.errors import NotFoundError, StaleFenceError
from models.tables import Job


class Exclusive(IntEnum):
    """Keys of the advisory locks; numbers no one else is likely to use in a shared database."""

    PLACE = 0x43454C_01
    RECONCILE = 0x43454C_02
    MIGRATE = 0x43454C_03
    SWEEP = 0x43454C_04
    FORECAST = 0x43454C_05
    ROLL_UP = 0x43454C_06
    OWN_POD = 0x43454C_07


def try_exclusive(session: Session, key: Exclusive) -> bool:
    """Take an advisory lock until the transaction ends; False when another dispatcher has it."""
    return bool(session.scalar(_TRY, {"key": int(key)}))


_TRY = text("SELECT pg_try_advisory_xact_lock(:key)")


def lock_job(session: Session, job_id: str) -> tuple[Job, datetime]:
    """The job's row, locked, and the time by the database's clock. Raises NotFoundError."""
    row = session.execute(_LOCK, {"job_id": job_id}).one_or_none()
    if row is None:
        raise no_such_job(job_id)
    return row[0], row[1]


_LOCK = (
    select(Job, func.clock_timestamp())
    .where(Job.id == bindparam("job_id"))
    .with_for_update(key_share=True, of=Job)
    .execution_options(populate_existing=True)
)


def no_such_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}", remedy="`celora jobs` lists the jobs")


# The job's row alone would not do as the guard: it still carries the fence after the attempt has
# ended. The attempt's row alone would not do either: a writer that goes on to the job's row would
# meet an ending attempt, which has that row first, in a deadlock. Postgres takes the locks in the
# order of the two clauses, and tests both rows once more after a wait.
_HOLD = text("""
    SELECT attempts.id
    FROM jobs JOIN attempts ON attempts.job_id = jobs.id
    WHERE jobs.id = :job_id AND attempts.fence = :fence AND attempts.ended_at IS NULL
    FOR NO KEY UPDATE OF jobs FOR SHARE OF attempts
""")


_HELD = "held attempts"  # in `session.info`: a Session lives for one transaction


def require_fence(session: Session, job_id: str, fence: int) -> int:
    """Hold the job and its live attempt until the transaction ends; returns the attempt's id.

    Every fenced write comes after it; a second one in the same transaction asks nobody. Raises
    StaleFenceError.
    """
    held = session.info.setdefault(_HELD, {})
    known = held.get((job_id, fence))
    if known is not None:
        return int(known)
    attempt_id = session.scalar(_HOLD, {"job_id": job_id, "fence": fence})
    if attempt_id is None:
        raise stale(job_id, fence)
    held[job_id, fence] = attempt_id
    return int(attempt_id)


def forget_fence(session: Session, job_id: str, fence: int) -> None:
    """This transaction itself has ended the attempt."""
    session.info.get(_HELD, {}).pop((job_id, fence), None)


def stale(job_id: str, fence: int) -> StaleFenceError:
    return StaleFenceError(
        f"attempt {fence} of job {job_id} is over, or another has taken its place; nothing written"
    )

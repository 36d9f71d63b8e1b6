"""One holder of a job's fence: claim a stage, keep the lease, end. The first commit wins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import all_, bindparam, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from models.errors import NotFoundError, SpecError, StateError
from models.notices import Notice
from models.queries.fence import lock_job, require_fence, stale
from models.queries.history import add_event
from models.queries.notices import tell
from models.queries.products import newest_checkpoint
from models.queries.settle import move, settle
from models.spec import JobSpec, stored_spec
from models.states import STOPPED_AS, JobState, Outcome, Stage, StopReason
from models.tables import Attempt, Checkpoint, Gpu, Job

__all__ = [
    "Claim",
    "Renewal",
    "claim",
    "end_attempt",
    "end_session_attempts",
    "finish_stage",
    "look",
    "record_trainer",
    "renew",
    "require_fence",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a worker needs to run one stage of one attempt."""

    attempt_id: int
    job_id: str
    fence: int
    stage: Stage
    spec: JobSpec
    work: dict[str, Any]  # of an export or a chat: see models/adapter_work.py
    tenant: str
    prepared_url: str | None
    data_digest: str | None
    rows_held_out: int | None  # 0: nothing to evaluate on; none: not known (a scripted job)
    base_revision: str | None
    overrides: dict[str, Any]  # a smaller micro-batch: {batch_size, gradient_accumulation}
    adapter_url: str | None
    start_checkpoint: Checkpoint | None  # the newest registered one; none: from step 0
    start_adapter_url: str | None  # the adapter to begin with, of the job in `spec.after`
    gpu_seconds_so_far: float  # of earlier attempts since the last retry; for the time limit


@dataclass(frozen=True, slots=True)
class Renewal:
    stop: StopReason | None  # what the attempt is asked to do


def claim(
    session: Session,
    job_id: str,
    fence: int,
    stage: Stage,
    *,
    worker: str,
    worker_session: str,
    lease_seconds: float,
) -> Claim | None:
    """Take one stage of an attempt: the only way to start one, once per (job, fence, stage).

    None for every ticket that is late, repeated, out of order, or meant for an earlier session of
    the GPU's worker; and when a stop was asked for between two stages, which ends the attempt here.
    """
    try:
        job, now = lock_job(session, job_id)
    except NotFoundError:
        return None
    if job.fence != fence or job.stage != stage:
        return None
    if job.stop_requested is not None:
        _stop_between_stages(session, job, now, worker_session)
        return None
    try:
        spec = stored_spec(job.spec)
        _require_readable(job)
    except SpecError as error:
        # Here, not in the worker: the claim would fail each time, and hold the GPU meanwhile.
        settle(session, job, now, Outcome.FAILED, reason=error.what, error=error.record())
        return None
    attempt = _claim_row(
        session,
        job,
        stage,
        worker=worker,
        worker_session=worker_session,
        lease_seconds=lease_seconds,
    )
    if attempt is None:
        return None
    attempt_id, gpu_id = attempt
    trained_before = stage is Stage.TRAIN and job.started_at is not None
    start = newest_checkpoint(session, job_id) if trained_before else None
    if start is not None:
        session.execute(
            update(Attempt)
            .where(Attempt.id == attempt_id)
            .values(start_step=start.step)
            .execution_options(synchronize_session=False)
        )
    if gpu_id is not None:
        move(job, now, JobState.RUNNING)
        if job.started_at is None:
            job.started_at = now
            tell(session, job, Notice.STARTED)
    return Claim(
        attempt_id=attempt_id,
        job_id=job_id,
        fence=fence,
        stage=stage,
        spec=spec,
        work=job.work or {},
        tenant=job.tenant.name,
        prepared_url=job.prepared_url,
        data_digest=job.data_digest,
        rows_held_out=(job.verdict or {}).get("rows_eval"),
        base_revision=job.base_revision,
        overrides=dict(job.overrides or {}),
        adapter_url=job.adapter_url,
        start_checkpoint=start,
        start_adapter_url=_adapter_of(session, spec.after) if spec.start_from_adapter else None,
        gpu_seconds_so_far=job.gpu_seconds - job.gpu_seconds_before_retry,
    )


def renew(session: Session, attempt_id: int, lease_seconds: float) -> Renewal | None:
    """Extend the lease from now, by the database's clock. None: the attempt has ended."""
    row = session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id, Attempt.ended_at.is_(None), Job.id == Attempt.job_id)
        .values(
            lease_until=func.clock_timestamp()
            + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)  # the seventh is its seconds
        )
        .returning(Job.stop_requested)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else Renewal(StopReason(row[0]) if row[0] else None)


def look(session: Session, attempt_id: int) -> Renewal | None:
    """`renew` without extending anything."""
    row = session.execute(
        select(Job.stop_requested)
        .join(Attempt, Attempt.job_id == Job.id)
        .where(Attempt.id == attempt_id, Attempt.ended_at.is_(None))
    ).one_or_none()
    return None if row is None else Renewal(StopReason(row[0]) if row[0] else None)


def record_trainer(session: Session, job_id: str, fence: int, *, pid: int, warm: bool) -> None:
    """Note which trainer process works, and whether it was warm. Raises StaleFenceError."""
    attempt_id = require_fence(session, job_id, fence)
    session.execute(_TRAINER, {"attempt_id": attempt_id, "pid": pid, "warm": warm})


_TRAINER = text(
    "UPDATE attempts SET trainer_pid = :pid, trainer_warm = :warm WHERE id = :attempt_id"
)


def finish_stage(
    session: Session,
    job_id: str,
    fence: int,
    stage: Stage,
    next_stage: Stage,
    *,
    result: dict[str, Any] | None = None,
) -> None:
    """`stage` is done and is never run again; `next_stage` follows on the same attempt.

    `result` is merged into the job's. Raises StaleFenceError; StateError when the job is not at
    `stage`.
    """
    attempt_id = require_fence(session, job_id, fence)
    moved = session.execute(
        _FINISH_STAGE,
        {
            "job_id": job_id,
            "attempt_id": attempt_id,
            "stage": stage,
            "next_stage": next_stage,
            "result": result or {},
        },
    ).one_or_none()
    if moved is None:
        raise StateError(f"job {job_id} is not at stage {stage}")
    add_event(session, job_id, "stage", f"{stage} is done; {next_stage} follows")


_FINISH_STAGE = text("""
    WITH moved AS (
        UPDATE jobs
        SET stage = :next_stage, losses = 0, activity = NULL,
            result = coalesce(result, '{}'::jsonb) || :result,
            train_seconds = CASE WHEN :stage = 'train' THEN coalesce(train_seconds, 0) + (
                SELECT extract(epoch FROM clock_timestamp() - stage_at) FROM attempts
                WHERE attempts.id = :attempt_id) ELSE train_seconds END
        WHERE id = :job_id AND stage = :stage
        RETURNING id
    )
    UPDATE attempts SET stage_at = clock_timestamp()
    FROM moved WHERE attempts.id = :attempt_id
    RETURNING attempts.id
""").bindparams(bindparam("result", type_=JSONB))


def end_attempt(
    session: Session,
    job_id: str,
    fence: int,
    outcome: Outcome,
    *,
    reason: str | None = None,
    step: int | None = None,
    error: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    counted: bool = True,
) -> Job:
    """End the attempt and move the job on (see models/ending.py).

    `error` is CeloraError.record() of a failure, `result` is merged into the job's, `overrides`
    replaces the job's for the next attempt. A loss that is not `counted` is no step towards failing
    the job. Raises StaleFenceError when the attempt was ended by someone else first.
    """
    try:
        job, now = lock_job(session, job_id)
    except NotFoundError:
        raise stale(job_id, fence) from None
    if job.fence != fence:
        raise stale(job_id, fence)
    if result is not None:
        job.result = (job.result or {}) | result
    if overrides is not None:
        job.overrides = overrides
    with session.no_autoflush:  # the job's row is written once
        settled = settle(
            session, job, now, outcome, reason=reason, step=step, error=error, counted=counted
        )
    if not settled:
        session.expire(job)
        raise stale(job_id, fence)
    session.flush()
    return job


def end_session_attempts(session: Session, gpu_id: int, keep_session: str) -> list[str]:
    """End as lost what an earlier session of the GPU's worker had claimed; returns the job ids.

    Only for the child that holds the GPU's lock: it knows that no older trainer lives.
    """
    session.execute(select(Gpu.id).where(Gpu.id == gpu_id).with_for_update(key_share=True))
    job_id = session.scalar(
        select(Attempt.job_id).where(
            Attempt.gpu_id == gpu_id,
            Attempt.ended_at.is_(None),
            Attempt.worker_session != keep_session,
        )
    )
    if job_id is None:
        return []
    job, now = lock_job(session, job_id)
    older = (Attempt.gpu_id == gpu_id) & (Attempt.worker_session != keep_session)
    ended = settle(
        session, job, now, Outcome.LOST, only_if=older, reason="the GPU's worker started anew"
    )
    return [job_id] if ended else []


def _require_readable(job: Job) -> None:
    """Raise SpecError for a row that no version of ours has written."""
    for column in ("overrides", "verdict", "work", "result"):
        value = getattr(job, column)
        if value is not None and not isinstance(value, dict):
            raise SpecError(
                f"the job's row cannot be read: its {column} is no object",
                where=f"jobs.{column}",
                remedy="submit the job again",
            )


def _adapter_of(session: Session, job_id: str | None) -> str | None:
    return session.scalar(select(Job.adapter_url).where(Job.id == job_id))


def _claim_row(
    session: Session,
    job: Job,
    stage: Stage,
    *,
    worker: str,
    worker_session: str,
    lease_seconds: float,
) -> tuple[int, int | None] | None:
    """Mark the stage as claimed; (attempt id, gpu id), or None when it is not to be had."""
    row = session.execute(
        _CLAIM,
        {
            "job_id": job.id,
            "fence": job.fence,
            "stage": stage,
            "worker": worker,
            "worker_session": worker_session,
            "lease_seconds": lease_seconds,
        },
    ).one_or_none()
    return None if row is None else (row[0], row[1])


# The tail belongs to the session that trained; a GPU's first stage to its worker's present session.
_CLAIM = text("""
    WITH claimed AS (
        UPDATE attempts
        SET claimed_stages = array_append(claimed_stages, :stage), worker = :worker,
            worker_session = :worker_session, claimed_at = coalesce(claimed_at, clock_timestamp()),
            stage_at = clock_timestamp(),
            lease_until = clock_timestamp() + make_interval(secs => :lease_seconds)
        WHERE job_id = :job_id AND fence = :fence AND ended_at IS NULL
          AND :stage <> ALL (claimed_stages)
          AND (worker_session IS NULL OR worker_session = :worker_session)
          AND (gpu_id IS NULL OR EXISTS (
              SELECT FROM gpus
              WHERE gpus.id = attempts.gpu_id AND gpus.worker_session = :worker_session))
        RETURNING id, gpu_id, job_id, fence, worker
    ), told AS (
        INSERT INTO events (job_id, kind, message, data)
        SELECT job_id, 'claimed', :stage || ': ' || worker || ' has it',
               jsonb_build_object('fence', fence)
        FROM claimed
    )
    SELECT id, gpu_id, pg_notify('celora_job', job_id) FROM claimed
""")


def _stop_between_stages(session: Session, job: Job, now: datetime, worker_session: str) -> None:
    """A claimed attempt whose next stage was not begun when the stop came: nothing runs, end it."""
    outcome = STOPPED_AS[StopReason(job.stop_requested or "")]
    due = (Attempt.worker_session == worker_session) & (
        literal(job.stage) != all_(Attempt.claimed_stages)
    )
    settle(session, job, now, outcome, only_if=due, reason="stopped between two stages")

"""How an attempt ends, whoever ends it: its row, the job's next state, the GPU time, the event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ColumnElement, bindparam, case, extract, func, text, update
from sqlalchemy.orm import Session

from models.ending import land
from models.errors import WorkerLostError
from models.notices import Notice
from models.queries.adapter_versions import add_version_of_completed
from models.queries.fence import forget_fence
from models.queries.history import add_event
from models.queries.notices import tell
from models.settings import settings
from models.states import TERMINAL, JobState, Outcome, Purpose, Stage, StopReason, require_edge
from models.tables import Attempt, Job
from models.turns import turn_at

_ANY_NUMBER = 2**31

# Where the time of each stage of a tuning is added up.
STAGE_COLUMNS = {
    Stage.PREPROCESS: "preprocess_seconds",
    Stage.TRAIN: "train_seconds",
    Stage.EVALUATE: "evaluate_seconds",
}


@dataclass(frozen=True, slots=True)
class Ended:
    gpu_id: int | None
    claimed: bool
    gpu_seconds: float  # 0 for preprocessing, and for an attempt that nobody claimed
    stage_seconds: float  # of the stage that was claimed last
    claimed_stages: list[str]


def settle(
    session: Session,
    job: Job,
    now: datetime,
    outcome: Outcome,
    *,
    only_if: ColumnElement[bool] | None = None,
    reason: str | None = None,
    step: int | None = None,
    error: dict[str, Any] | None = None,
    counted: bool = True,
    at_its_lease: bool = False,
) -> bool:
    """End the live attempt of a locked job and move the job on; False when there is none to end.

    `job` and `now` come from `lock_job`. `only_if` is tested on the attempt's row as it is now that
    nobody else can end it. A loss that is not `counted` is no step towards failing the job.
    `at_its_lease`: it ended with its lease, however long ago that was, and no time is charged
    beyond that.
    """
    ended = _end_row(
        session, job, outcome, only_if=only_if, reason=reason, step=step, at_its_lease=at_its_lease
    )
    if ended is None:
        return False
    before = JobState(job.state)
    _add_stage_seconds(job, ended)
    landing = land(
        outcome,
        stage=Stage(job.stage),
        evaluate=_evaluated(job),
        stop=StopReason(job.stop_requested) if job.stop_requested else None,
        losses=job.losses,
        max_losses=settings().max_losses if counted else _ANY_NUMBER,
    )
    move(job, now, landing.state)
    job.stage = landing.stage
    if counted:
        job.losses = landing.losses
    job.stop_requested = job.stop_requested_at = job.activity = None
    job.gpu_seconds += ended.gpu_seconds
    if not ended.claimed:
        job.fence += 1  # its ticket may still be on the way
    if landing.state is JobState.FAILED:
        job.error = error or _lost_error(job, reason)
    if ended.gpu_seconds:
        charge(session, job, ended.gpu_seconds)
    level = "error" if job.state == JobState.FAILED else _LEVELS.get(outcome, "info")
    if job.state == JobState.COMPLETED and job.purpose == Purpose.TUNE:
        add_version_of_completed(session, job)
    kind, message = _story(job, before, outcome, reason)
    add_event(session, job.id, kind, message, level=level, wake=True)
    if landing.state in TERMINAL:
        tell(session, job, Notice(landing.state.value))
    return True


def _evaluated(job: Job) -> bool:
    """Whether an evaluation follows; also of a row that cannot be read, for it has to end."""
    return not isinstance(job.spec, dict) or bool(job.spec.get("evaluate", True))


def move(job: Job, now: datetime, state: JobState) -> None:
    """Change a locked job's state along an allowed edge. Raises StateError."""
    current = JobState(job.state)
    if current is state:
        return
    require_edge(current, state)
    job.state = state
    if state in TERMINAL:
        job.finished_at = now
    if state in {JobState.PENDING, JobState.QUEUED} and current is not JobState.RUNNING:
        # One that was running keeps its place in the queue.
        job.queued_at, job.turn_at = now, turn_at(now, job.priority)


def charge(session: Session, job: Job, gpu_seconds: float) -> None:
    """Add to the decaying sum of the job's tenant, to its user's day, and to how long its attempts
    take: a mean in which each new one counts a tenth."""
    session.execute(
        _CHARGE,
        {
            "tenant_id": job.tenant_id,
            "user_name": job.user_name,
            "gpu_seconds": gpu_seconds,
            "half_life": settings().usage_half_life_seconds,
        },
    )


def _end_row(
    session: Session,
    job: Job,
    outcome: Outcome,
    *,
    only_if: ColumnElement[bool] | None,
    reason: str | None,
    step: int | None,
    at_its_lease: bool,
) -> Ended | None:
    statement = _END if only_if is None else _END.where(only_if)
    details = {
        "of_job": job.id,
        "of_fence": job.fence,
        "how": outcome,
        "why": reason,
        "at_step": step,
        "at_its_lease": at_its_lease,
    }
    row = session.execute(statement, details).one_or_none()
    if row is None:
        return None
    forget_fence(session, job.id, job.fence)
    gpu_id, claimed_at, seconds, stage_seconds, claimed_stages = row
    used = float(seconds) if gpu_id is not None and seconds is not None else 0.0
    return Ended(
        gpu_id, claimed_at is not None, used, float(stage_seconds or 0), list(claimed_stages)
    )


def _add_stage_seconds(job: Job, ended: Ended) -> None:
    """Between two stages, where the next was not begun, nothing was worked."""
    column = STAGE_COLUMNS.get(Stage(job.stage))
    if column is not None and job.stage in ended.claimed_stages:
        setattr(job, column, (getattr(job, column) or 0.0) + ended.stage_seconds)


_END = (
    update(Attempt)
    .where(
        Attempt.job_id == bindparam("of_job"),
        Attempt.fence == bindparam("of_fence"),
        Attempt.ended_at.is_(None),
    )
    .values(
        ended_at=case(
            (
                bindparam("at_its_lease", type_=Boolean),
                func.least(
                    func.clock_timestamp(), func.coalesce(Attempt.lease_until, Attempt.placed_at)
                ),
            ),
            else_=func.clock_timestamp(),
        ),
        outcome=bindparam("how"),
        reason=bindparam("why"),
        end_step=bindparam("at_step"),
    )
    .returning(
        Attempt.gpu_id,
        Attempt.claimed_at,
        extract("epoch", Attempt.ended_at - Attempt.claimed_at),
        extract("epoch", Attempt.ended_at - Attempt.stage_at),
        Attempt.claimed_stages,
    )
    .execution_options(synchronize_session=False)
)

# Halved once per half-life since it was last true. Beyond 100 half-lives nothing is left that a
# double could tell from zero, and power() would raise on underflow.
_CHARGE = text("""
    WITH day AS (
        INSERT INTO usage_days (user_id, day, gpu_seconds)
        SELECT id, (clock_timestamp() AT TIME ZONE 'UTC')::date, :gpu_seconds FROM users
        WHERE tenant_id = :tenant_id AND name = :user_name
        ON CONFLICT (user_id, day)
            DO UPDATE SET gpu_seconds = usage_days.gpu_seconds + excluded.gpu_seconds
    )
    UPDATE tenants
    SET usage_gpu_seconds = :gpu_seconds + usage_gpu_seconds * power(
            0.5, least(100, extract(epoch FROM clock_timestamp() - usage_at) / :half_life)),
        usage_at = clock_timestamp(),
        attempt_gpu_seconds = :gpu_seconds + 0.9 * (
            coalesce(attempt_gpu_seconds, :gpu_seconds) - :gpu_seconds)
    WHERE id = :tenant_id
""")

_LEVELS = {Outcome.LOST: "warn", Outcome.FAILED: "error", Outcome.RETRIED: "warn"}

_ENDINGS = {
    Outcome.COMPLETED: "stage completed",
    Outcome.FAILED: "failed",
    Outcome.CANCELLED: "stopped for a cancel",
    Outcome.PAUSED: "stopped for a pause",
    Outcome.PREEMPTED: "made room for another job",
    Outcome.DRAINED: "its worker is leaving",
    Outcome.LOST: "its attempt was lost",
    Outcome.WITHDRAWN: "its GPU went away before it started",
    Outcome.RETRIED: "ran out of memory; runs again with a smaller micro-batch",
}


def _lost_error(job: Job, reason: str | None) -> dict[str, Any]:
    if job.stage == Stage.GENERATE:
        return WorkerLostError(
            "the chat was cut off" + (f": {reason}" if reason else ""),
            remedy="start the chat again",
        ).record()
    return WorkerLostError(
        f"its attempts were lost {job.losses} times in a row without a new checkpoint"
        + (f"; the last time: {reason}" if reason else ""),
        remedy="read `celora logs` for what ends it, then `celora retry`",
    ).record()


def _story(job: Job, before: JobState, outcome: Outcome, reason: str | None) -> tuple[str, str]:
    """Kind and message of the event: the job's new state where that is news, else the outcome."""
    state = JobState(job.state)
    what = _ENDINGS[outcome] + (f": {reason}" if reason else "")
    if state in TERMINAL or state is JobState.PAUSED:
        if state is JobState.FAILED and job.error:
            return state, f"failed: {job.error.get('message') or what}"
        return state, f"{state}" if outcome is Outcome.COMPLETED else f"{state}: {what}"
    if outcome is Outcome.COMPLETED:
        return "queued", f"queued for {job.stage}"
    place = "waits for its turn again" if before is not JobState.RUNNING else "queued again"
    return outcome, f"{what}; {place}"

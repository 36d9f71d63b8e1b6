"""Why a job waits, in a sentence, and how many go before it in the dispatcher's order."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.gpus import GpuView, list_gpus
from models.queries.jobs import get_job
from models.queries.shares import PLACEMENT_CHARGE_SECONDS, SHARES, share_parameters
from models.states import JobState
from models.tables import Job


@dataclass(frozen=True, slots=True)
class Why:
    """`reason` is a code that stays: to_prepare, preparing, no_worker, gpus_held, gpus_cordoned,
    gpus_busy, next, placed, running, stopping, paused, finished.

    `position` counts from 1 in the order in which the dispatcher would place; none when the job
    does not wait for a GPU. Other jobs that come meanwhile can change it.
    """

    state: JobState
    reason: str
    sentence: str
    position: int | None = None


def why_waiting(session: Session, job_id: str) -> Why:
    """Raises NotFoundError."""
    job = get_job(session, job_id)
    state = JobState(job.state)
    if state is JobState.PENDING:
        return _why_pending(session, job)
    if state is JobState.QUEUED:
        return _why_queued(session, job)
    if state is JobState.RUNNING:
        return _why_running(job)
    if state is JobState.PAUSED:
        return Why(state, "paused", "It is paused; `celora resume` lets it go on.")
    return Why(state, "finished", f"It does not wait: it is {state}.")


def _why_running(job: Job) -> Why:
    state = JobState.RUNNING
    if job.stop_requested is not None:
        return Why(state, "stopping", f"It runs and is asked to stop ({job.stop_requested}).")
    doing = f" ({job.activity})" if job.activity else ""
    return Why(state, "running", f"It does not wait: it runs, stage {job.stage}{doing}.")


def _why_pending(session: Session, job: Job) -> Why:
    state = JobState.PENDING
    claimed = session.execute(_LIVE, {"job_id": job.id}).one_or_none()
    if claimed is not None and claimed.claimed_at is not None:
        return Why(state, "preparing", "Its data is being prepared.")
    if claimed is not None:
        return Why(state, "to_prepare", "Its data waits for a CPU worker: is one running?")
    return Why(state, "to_prepare", "Its data waits to be prepared, after others that came first.")


def _why_queued(session: Session, job: Job) -> Why:
    state = JobState.QUEUED
    placed = session.execute(_LIVE, {"job_id": job.id}).one_or_none()
    if placed is not None:
        return Why(state, "placed", f"It has a GPU ({placed.queue}); its worker takes it up now.")
    position = _position(session, job)
    gpus = list_gpus(session)
    reason, sentence = _blocker(gpus)
    if reason == "next" and position > sum(gpu.state == "free" for gpu in gpus):
        reason, sentence = "gpus_busy", "Jobs that go first take the GPUs that are free."
    if position > 1:
        sentence += f" {position - 1} {'job goes' if position == 2 else 'jobs go'} before it."  # noqa: PLR2004 (one before it)
    return Why(state, reason, sentence, position)


def _blocker(gpus: list[GpuView]) -> tuple[str, str]:
    """What keeps the next job from a GPU: the state that would change most, from best to worst."""
    count = Counter(gpu.state for gpu in gpus)
    if count["free"]:
        return "next", "A GPU is free: the dispatcher places it within seconds. Is it running?"
    working = count["busy"] + count["placed"] + count["unknown"]
    if working:
        return "gpus_busy", f"All GPUs that take jobs are busy ({working})."
    if count["held"]:
        return "gpus_held", "Other processes hold the memory of the GPUs; see `celora gpus`."
    if count["cordoned"]:
        return "gpus_cordoned", "The GPUs are cordoned; see `celora gpus`."
    return "no_worker", "No GPU worker is running; `celora gpu-worker` starts one."


def _position(session: Session, job: Job) -> int:
    """1 + the jobs placed before it if GPUs came free one after another from now on.

    Each placement adds the charge to its tenant's sum. With k jobs of its own tenant up to and with
    this one, that tenant's share is (sum + (k - 1) · charge) / weight at its turn; another tenant
    has by then placed as many as keep its share below that, if it has as many.
    """
    shares = {row.tenant_id: row for row in session.execute(_SHARES, share_parameters())}
    own = shares.get(job.tenant_id)
    if own is None:  # the tenant's last job has just been placed
        return 1
    rank = session.execute(
        _RANK,
        {
            "tenant_id": job.tenant_id,
            "turn_at": job.turn_at,
            "job_id": job.id,
        },
    ).scalar_one()
    at_turn = (float(own.gpu_seconds) + (rank - 1) * PLACEMENT_CHARGE_SECONDS) / own.weight
    before = 0
    for tenant_id, other in shares.items():
        if tenant_id == job.tenant_id:
            continue
        turns = (at_turn * other.weight - float(other.gpu_seconds)) / PLACEMENT_CHARGE_SECONDS
        # At an equal share the lower id goes first.
        placed = math.floor(turns) + 1 if tenant_id < job.tenant_id else math.ceil(turns)
        before += min(max(placed, 0), other.waiting)
    return before + int(rank)


_LIVE = text("""
    SELECT attempts.claimed_at, gpus.queue
    FROM attempts LEFT JOIN gpus ON gpus.id = attempts.gpu_id
    WHERE attempts.job_id = :job_id AND attempts.ended_at IS NULL
""")

_SHARES = text(f"""
    WITH {SHARES}
    SELECT shares.*, waiting.jobs AS waiting
    FROM shares JOIN (
        SELECT tenant_id, count(*) AS jobs FROM jobs
        WHERE state = 'queued' AND NOT EXISTS (
            SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
        GROUP BY tenant_id
    ) AS waiting ON waiting.tenant_id = shares.tenant_id
""")  # noqa: S608 (joined from constants)

_RANK = text("""
    SELECT count(*) + 1 FROM jobs
    WHERE tenant_id = :tenant_id AND state = 'queued'
      AND (turn_at, id) < (:turn_at, :job_id)
      AND NOT EXISTS (
          SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
""")

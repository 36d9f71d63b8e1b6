"""Why a job waits, in a sentence, how many go before it, and when it is expected to start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.abilities import release_words
from models.duration import duration
from models.forecast import Placed
from models.gpu_wish import OWN_POD
from models.queries.depth import depth, is_behind
from models.queries.jobs import get_job
from models.queries.pool import Pool, read_pool
from models.queries.reasons import (
    ITS_POD,
    Blocker,
    basis,
    blocker,
    expected,
    making_room,
    may_come,
)
from models.states import JobState
from models.tables import Job

# So far the pool is played forward for one answer; what lies behind is counted, and then it is
# played no further than a rate needs.
_PLAYED = 1000
_PLAYED_FOR_A_RATE = 200


@dataclass(frozen=True, slots=True)
class Why:
    """`reason` is a code that stays: to_prepare, preparing, waits_for, limit, no_worker,
    no_such_gpu, such_gpus_busy, gpus_held, gpus_cordoned, gpus_busy, preempting, next, placed,
    running, stopping, paused, finished, its_pod.

    `position` counts from 1 in the order in which the dispatcher would place; none when the job
    does not wait for a GPU, or cannot be placed as things stand. Other jobs that come meanwhile
    can change it, and with it `expected_start_at`. `limit` names the one that is reached, and
    `limit_of` whose it is: tenant or user.
    """

    state: JobState
    reason: str
    sentence: str
    position: int | None = None
    expected_start_at: datetime | None = None
    basis: str | None = None  # what the expectation rests on, in words
    limit: str | None = None
    limit_of: str | None = None


def why_waiting(session: Session, job_id: str) -> Why:
    """Raises NotFoundError."""
    job = get_job(session, job_id)
    state = JobState(job.state)
    if state is JobState.PENDING:
        return _why_pending(session, job)
    if state is JobState.QUEUED:
        return _why_queued(session, job)
    if state is JobState.RUNNING:
        return _why_running(session, job)
    if state is JobState.PAUSED:
        return Why(state, "paused", "It is paused; `celora resume` lets it go on.")
    return Why(state, "finished", f"It does not wait: it is {state}.")


def _why_running(session: Session, job: Job) -> Why:
    state = JobState.RUNNING
    silent = session.scalar(_SILENT, {"job_id": job.id})
    if silent is not None and _has_own_pod(session, job.lane_id):
        said = f"Its pod has not been heard of since its lease ran out, {duration(silent)} ago."
        return Why(state, ITS_POD.reason, f"{said} It goes on when Kubernetes starts it again.")
    if job.stop_requested is not None:
        return Why(state, "stopping", f"It runs and is asked to stop ({job.stop_requested}).")
    return Why(state, "running", f"It does not wait: it runs, stage {job.stage}{_doing(job)}.")


def _doing(job: Job) -> str:
    return f" ({job.activity})" if job.activity else ""


def _why_pending(session: Session, job: Job) -> Why:
    state = JobState.PENDING
    claimed = session.execute(_LIVE, {"job_id": job.id}).one_or_none()
    if claimed is not None and claimed.claimed_at is not None:
        return Why(state, "preparing", f"Its data is being prepared{_doing(job)}.")
    if claimed is not None and not _has_own_pod(session, job.lane_id):
        which = release_words(claimed.labels or {}, "CPU worker") or "a CPU worker"
        return Why(state, "to_prepare", f"Its data waits for {which}: is one running?")
    found = not_prepared(session, job.lane_id)
    return Why(state, found.reason, found.sentence, limit=found.limit, limit_of=found.limit_of)


def not_prepared(session: Session, lane_id: int | None) -> Blocker:
    """Why jobs of a lane are not even sent to be prepared."""
    if _has_own_pod(session, lane_id):
        return ITS_POD
    full = session.execute(_FULL, {"lane_id": lane_id}).first()
    if full is None:
        said = (
            "Its data waits for its turn with a CPU worker, which prepares it;"
            " then the job waits for a GPU."
        )
        return Blocker("to_prepare", said)
    jobs = "job" if full.most == 1 else "jobs"
    said = (
        f"{full.who} may have {full.most} prepared {jobs} waiting (max_queued_jobs), and has"
        f" {full.counted}: its data is prepared when one of them has started."
    )
    return Blocker("limit", said, "max_queued_jobs", full.of)


def _why_queued(session: Session, job: Job) -> Why:
    state = JobState.QUEUED
    placed = session.execute(_LIVE, {"job_id": job.id}).one_or_none()
    if placed is not None and not _has_own_pod(session, job.lane_id):
        return Why(state, "placed", f"It has a GPU ({placed.queue}); its worker takes it up now.")
    if job.waits_for is not None:
        return Why(
            state, "waits_for", predecessor(job.waits_for, get_job(session, job.waits_for).state)
        )
    if job.lane_id is None:
        said = "An earlier version submitted it; the dispatcher takes it up. Is it running?"
        return Why(state, "next", said)
    return _why_in_the_queue(session, job, job.lane_id)


def _why_in_the_queue(session: Session, job: Job, lane_id: int) -> Why:
    pool = read_pool(session, lane_id)
    last: Placed | None = None
    mine: Placed | None = None
    behind = is_behind(session, job, _PLAYED)
    for last in pool.play.run(_PLAYED_FOR_A_RATE if behind else _PLAYED):
        if last.waiter.id == job.id:
            mine = last
            break
    found = making_room(pool, job.id) or blocker(pool, lane_id, mine)
    if mine is None and last is not None and pool.play.cut and may_come(pool, found):
        return _far_back(session, pool, job, found, last)
    when = expected(pool, mine, found)
    position = mine.position if mine else None
    return Why(
        JobState.QUEUED,
        found.reason,
        found.sentence + _before(position),
        position,
        when.start_at,
        when.basis,
        found.limit,
        found.limit_of,
    )


def _far_back(session: Session, pool: Pool, job: Job, found: Blocker, last: Placed) -> Why:
    """Behind all that was played: by count and rate."""
    deep = depth(session, job, last)
    start_at = said = None
    if deep.seconds is not None:
        start_at = pool.now + timedelta(seconds=deep.seconds)
        said = f"{basis(last)}; those behind at the same rate"
    return Why(
        JobState.QUEUED,
        found.reason,
        found.sentence + _before(deep.position, "about " if deep.exact else "at least "),
        deep.position,
        start_at,
        said,
        found.limit,
        found.limit_of,
    )


def _has_own_pod(session: Session, lane_id: int | None) -> bool:
    return bool(session.scalar(_OWN_POD, {"lane_id": lane_id, "label": OWN_POD}))


def _before(position: int | None, about: str = "") -> str:
    if position is None or position == 1:
        return ""
    before = position - 1
    said = f"{about}{before:,} {'job goes' if before == 1 else 'jobs go'} before it."
    return " " + said[0].upper() + said[1:]


def predecessor(job_id: str, state: str) -> str:
    """That a job waits for another."""
    said = f"It waits for job {job_id}, which is {state}"
    if state == JobState.FAILED:
        return f"{said}: `celora retry {job_id}` runs that again."
    if state == JobState.PAUSED:
        return f"{said}: `celora resume {job_id}` lets that go on."
    return f"{said}."


_OWN_POD = text("""
    SELECT jsonb_exists(gpu_needs.labels, :label)
    FROM lanes JOIN gpu_needs ON gpu_needs.id = lanes.need_id WHERE lanes.id = :lane_id
""")

# Without a dispatcher nobody ends what a pod that is gone has left.
_SILENT = text("""
    SELECT extract(epoch FROM clock_timestamp() - lease_until)::float8 FROM attempts
    WHERE job_id = :job_id AND ended_at IS NULL AND lease_until < clock_timestamp()
""")

_LIVE = text("""
    SELECT attempts.claimed_at, gpus.queue, gpu_needs.labels
    FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    LEFT JOIN gpus ON gpus.id = attempts.gpu_id
    LEFT JOIN lanes ON lanes.id = jobs.lane_id
    LEFT JOIN gpu_needs ON gpu_needs.id = lanes.need_id
    WHERE attempts.job_id = :job_id AND attempts.ended_at IS NULL
""")

# The tenant or the user of a lane who has as many prepared jobs, or jobs in preparation, as may be.
_FULL = text("""
    WITH parties AS (
        SELECT 'tenant' AS of, 'Tenant ' || tenants.name AS who,
               tenants.max_queued_jobs AS most, tenants.id AS tenant_id, NULL::bigint AS user_id
        FROM lanes JOIN tenants ON tenants.id = lanes.tenant_id WHERE lanes.id = :lane_id
        UNION ALL
        SELECT 'user', 'User ' || users.name || ' of tenant ' || tenants.name,
               coalesce(users.max_queued_jobs, tenants.user_max_queued_jobs), tenants.id, users.id
        FROM lanes
        JOIN users ON users.id = lanes.user_id
        JOIN tenants ON tenants.id = users.tenant_id
        WHERE lanes.id = :lane_id
    )
    SELECT parties.*, waiting.counted + preparing.counted AS counted
    FROM parties
    CROSS JOIN LATERAL (
        SELECT count(*) AS counted FROM (
            SELECT FROM lanes JOIN jobs ON jobs.lane_id = lanes.id
            WHERE lanes.tenant_id = parties.tenant_id
              AND (parties.user_id IS NULL OR lanes.user_id = parties.user_id)
              AND jobs.state = 'queued' AND jobs.waits_for IS NULL
            LIMIT parties.most
        ) AS jobs
    ) AS waiting
    CROSS JOIN LATERAL (
        SELECT count(*) AS counted
        FROM attempts JOIN jobs ON jobs.id = attempts.job_id JOIN lanes ON lanes.id = jobs.lane_id
        WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NULL
          AND lanes.tenant_id = parties.tenant_id
          AND (parties.user_id IS NULL OR lanes.user_id = parties.user_id)
    ) AS preparing
    WHERE waiting.counted + preparing.counted >= parties.most
    LIMIT 1
""")

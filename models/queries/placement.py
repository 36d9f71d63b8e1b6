"""Which job goes next, and where: preparation for CPU workers, and a free GPU for the best job.

One dispatcher places at a time, so that no limit can be raced; the others find the lock taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.abilities import PREFIX, RELEASES, preparation_queue
from models.queries.fence import Exclusive
from models.queries.lanes import FITS
from models.queries.shares import SHARES, USER_LIMIT, share_parameters
from models.settings import settings
from models.states import Stage

# How many jobs of the tenant whose turn it is are looked at, for one whose base is loaded already.
_LOOK_AHEAD = 8

# The lanes of a tenant that may go: their user is below all limits, and a GPU that is free has what
# they ask for; each with its front.
_OPEN_LANES = f"""
    lanes
    JOIN tenants ON tenants.id = lanes.tenant_id
    JOIN users ON users.id = lanes.user_id AND users.tenant_id = walk.tenant_id
    LEFT JOIN live AS held ON held.tenant_id = users.tenant_id AND held.user_name = users.name
    CROSS JOIN LATERAL ({{front}}) AS front
    WHERE lanes.tenant_id = walk.tenant_id AND lanes.urgent = walk.urgent
      AND lanes.need_id = ANY (CAST(:need_ids AS bigint[])) AND {USER_LIMIT} IS NULL
"""

# The first jobs of a lane. It reads ix_jobs_queued_turn from its front, so it costs the same with a
# thousand and a million jobs queued; it passes over the few that are placed and not yet claimed.
_FRONT = """
    SELECT {columns} FROM jobs
    WHERE lane_id = {lane} AND state = 'queued' AND waits_for IS NULL
      AND id <> ALL (CAST((SELECT job_ids FROM not_these) AS text[]))
    ORDER BY turn_at, id
    LIMIT {limit}
"""
_FIRST = _FRONT.format(columns="id, turn_at", lane="lanes.id", limit=1)
_FIRST_FEW = _FRONT.format(columns="id, turn_at, base_model", lane="near.id", limit=":look_ahead")

# Urgent lanes first; in both rounds one tenant after the other in the order of their shares, those
# over a limit left out, until one has a job that may go; then its best ones. A recursion, because
# it stops there whatever the planner knows of the tables: to probe all tenants costs tens of
# milliseconds (tried). A tenant's best jobs are in the lanes with the best fronts: the other lanes
# are looked at no further.
_BEST_JOBS = text(f"""
    WITH RECURSIVE {SHARES}, not_these AS MATERIALIZED (
        SELECT CAST(:passed_over AS text[]) || ARRAY(
            SELECT job_id FROM attempts
            WHERE ended_at IS NULL AND claimed_at IS NULL AND gpu_id IS NOT NULL) AS job_ids
    ), turns AS MATERIALIZED (
        SELECT array_agg(tenant_id ORDER BY urgent DESC, share, tenant_id) AS tenant_ids,
               array_agg(urgent ORDER BY urgent DESC, share, tenant_id) AS urgents
        FROM (SELECT tenant_id, gpu_seconds / weight AS share FROM shares WHERE over_limit IS NULL
             ) AS shares
        CROSS JOIN LATERAL (
            SELECT false AS urgent
            UNION ALL
            (SELECT true FROM lanes WHERE lanes.tenant_id = shares.tenant_id AND urgent LIMIT 1)
        ) AS round
    ), walk AS (
        SELECT 0 AS turn, CAST(NULL AS bigint) AS tenant_id, false AS urgent, false AS found
        UNION ALL
        SELECT walk.turn, walk.tenant_id, walk.urgent,
               (SELECT true FROM {_OPEN_LANES.format(front=_FIRST)} LIMIT 1) IS NOT NULL
        FROM (
            SELECT turn + 1 AS turn, tenant_ids[turn + 1] AS tenant_id, urgents[turn + 1] AS urgent
            FROM walk CROSS JOIN turns
            WHERE NOT found AND turn < cardinality(tenant_ids)
        ) AS walk
    )
    SELECT best.id, best.base_model, best.turn_at, best.need_id
    FROM walk
    CROSS JOIN LATERAL (
        SELECT jobs.*, near.need_id
        FROM (
            SELECT lanes.id, lanes.need_id
            FROM {_OPEN_LANES.format(front=_FIRST)}
            ORDER BY front.turn_at, front.id
            LIMIT :look_ahead
        ) AS near
        CROSS JOIN LATERAL ({_FIRST_FEW}) AS jobs
        ORDER BY jobs.turn_at, jobs.id
        LIMIT :look_ahead
    ) AS best
    WHERE walk.found
    ORDER BY best.turn_at, best.id
""")  # noqa: S608 (joined from constants)

_FREE_GPUS = text(f"""
    SELECT id, queue, loaded_base, memory_bytes,
           (SELECT count(*) FROM jsonb_object_keys(labels)) AS labels,
           ARRAY(SELECT gpu_needs.id FROM gpu_needs WHERE {FITS}) AS need_ids
    FROM gpus
    WHERE reported = 'idle' AND NOT cordoned AND stopped_at IS NULL
      AND heartbeat_at > clock_timestamp() - make_interval(secs => :stale_seconds)
      AND NOT EXISTS (
          SELECT FROM attempts WHERE attempts.gpu_id = gpus.id AND attempts.ended_at IS NULL)
    ORDER BY id
    FOR NO KEY UPDATE SKIP LOCKED
""")  # noqa: S608 (joined from constants)

# Tenants take turns, each with its own best first, so that a flood of one holds up no other. Jobs
# beyond `max_queued_jobs` of their tenant or user stay here until others have begun. Jobs that need
# a worker of a certain version have a queue of their own, and room of their own in it: where no
# such worker runs they hold up no others. What needs a version that this one does not know of has
# no room at all: it is left to that version's dispatcher.
_NEXT_TO_PREPARE = text("""
    WITH needs AS MATERIALIZED (
        SELECT id, coalesce((SELECT max(name) FROM jsonb_object_keys(labels) AS name
                             WHERE starts_with(name, :prefix)), '') AS ability
        FROM gpu_needs
        ORDER BY id  -- along its index: else the whole statement is taken for costly, and compiled
    ), preparing AS (
        SELECT jobs.tenant_id, jobs.user_name, coalesce(needs.ability, '') AS ability,
               count(*) AS jobs
        FROM attempts JOIN jobs ON jobs.id = attempts.job_id
        LEFT JOIN lanes ON lanes.id = jobs.lane_id
        LEFT JOIN needs ON needs.id = lanes.need_id
        WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NULL
        GROUP BY jobs.tenant_id, jobs.user_name, coalesce(needs.ability, '')
    ), room AS (
        SELECT ability, greatest(0, :in_flight - coalesce((
            SELECT sum(jobs) FROM preparing WHERE preparing.ability = known.ability), 0)) AS jobs
        FROM unnest(CAST(:abilities AS text[])) AS known (ability)
    ), limits AS (
        SELECT users.id AS user_id, users.name, tenants.id AS tenant_id,
               tenants.max_queued_jobs AS of_tenant,
               coalesce(users.max_queued_jobs, tenants.user_max_queued_jobs) AS of_user
        FROM users JOIN tenants ON tenants.id = users.tenant_id
        WHERE (SELECT max(jobs) FROM room) > 0
    ), fronts AS (
        SELECT front.id, front.turn_at, room.ability, limits.*
        FROM limits JOIN lanes ON lanes.user_id = limits.user_id
        JOIN needs ON needs.id = lanes.need_id
        JOIN room ON room.ability = needs.ability AND room.jobs > 0
        CROSS JOIN LATERAL (
            SELECT id, turn_at FROM jobs
            WHERE lane_id = lanes.id AND state = 'pending'
              AND NOT EXISTS (
                  SELECT FROM attempts
                  WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
            ORDER BY turn_at, id
            LIMIT room.jobs
        ) AS front
    ), ahead AS (
        -- Counted up to the limit, and only where there is one.
        SELECT user_id, tenant_id, of_user, of_tenant,
               (SELECT coalesce(sum(jobs), 0) FROM preparing
                WHERE preparing.tenant_id = limits.tenant_id AND user_name = limits.name
               ) AS preparing_of_user,
               (SELECT coalesce(sum(jobs), 0) FROM preparing
                WHERE preparing.tenant_id = limits.tenant_id) AS preparing_of_tenant,
               (SELECT count(*) FROM (
                    SELECT FROM lanes JOIN jobs ON jobs.lane_id = lanes.id
                    WHERE lanes.user_id = limits.user_id
                      AND jobs.state = 'queued' AND jobs.waits_for IS NULL
                    LIMIT coalesce(of_user, 0)) AS counted) AS queued_of_user,
               (SELECT count(*) FROM (
                    SELECT FROM lanes JOIN jobs ON jobs.lane_id = lanes.id
                    WHERE lanes.tenant_id = limits.tenant_id
                      AND jobs.state = 'queued' AND jobs.waits_for IS NULL
                    LIMIT coalesce(of_tenant, 0)) AS counted) AS queued_of_tenant
        FROM limits WHERE user_id IN (SELECT user_id FROM fronts)
    ), turns AS (
        SELECT fronts.id, turn_at, ability, ahead.*,
               row_number() OVER (PARTITION BY fronts.user_id ORDER BY turn_at, id) AS of_users,
               row_number() OVER (PARTITION BY fronts.tenant_id ORDER BY turn_at, id) AS of_tenants
        FROM fronts JOIN ahead ON ahead.user_id = fronts.user_id
    ), places AS (
        SELECT id, ability,
               row_number() OVER (PARTITION BY ability
                                  ORDER BY of_tenants + preparing_of_tenant, turn_at, id) AS place
        FROM turns
        WHERE (of_user IS NULL OR of_users + preparing_of_user + queued_of_user <= of_user)
          AND (of_tenant IS NULL
               OR of_tenants + preparing_of_tenant + queued_of_tenant <= of_tenant)
    )
    SELECT id, ability FROM places JOIN room USING (ability)
    WHERE place <= room.jobs
    ORDER BY place, ability
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
        WHERE jobs.state = :state AND NOT EXISTS (
            SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
        FOR NO KEY UPDATE OF jobs SKIP LOCKED
    ), placed AS (
        UPDATE jobs SET fence = fence + 1
        FROM locked WHERE jobs.id = locked.id
        RETURNING jobs.id, jobs.fence, jobs.stage, locked.gpu_id, locked.queue,
                  coalesce(jobs.spec ->> 'evaluate', 'true') <> 'false' AS evaluate
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
    memory_bytes: int
    labels: int  # how many it carries
    need_ids: list[int]  # what it meets of what jobs ask for


@dataclass(frozen=True, slots=True)
class _Candidate:
    id: str
    base_model: str
    turn_at: datetime
    need_id: int


# The lock by which one dispatcher places at a time; and, for its transaction, plans that suit any
# number of jobs. The planner would choose by statistics, which lag behind a queue that grows and
# shrinks by the minute, and would think for longer than such a plan runs.
_TAKE_TURN = text("""
    SELECT pg_try_advisory_xact_lock(:key),
           set_config('plan_cache_mode', 'force_generic_plan', true),
           set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)
""")


def place_preprocess(session: Session, limit: int, *, queue: str = "celora.cpu") -> int:
    """Send the next pending jobs to be prepared, until `limit` wait or run; returns how many.

    Those that need a worker of a certain version go to that version's queue, beside `queue`, and
    are counted apart. 0 as well when another dispatcher is placing.
    """
    if not take_turn(session):
        return 0
    found = session.execute(
        _NEXT_TO_PREPARE,
        {
            "in_flight": limit,
            "prefix": PREFIX,
            "abilities": ["", *(f"{PREFIX}{release}" for release in RELEASES)],
        },
    ).all()
    if not found:
        return 0
    queues = [preparation_queue(queue, row.ability) for row in found]
    return len(_place(session, "pending", [row.id for row in found], [None] * len(found), queues))


def place_jobs(session: Session, *, stale_seconds: float) -> list[Placement]:
    """Give every free GPU its job: the best job first, then the GPU that suits it best.

    Free: a heartbeat younger than `stale_seconds` on the database's clock, reported idle, not
    cordoned, no live attempt. Empty as well when another dispatcher is placing.
    """
    if not take_turn(session):
        return []
    free = [_FreeGpu(*row) for row in session.execute(_FREE_GPUS, {"stale_seconds": stale_seconds})]
    placements: list[Placement] = []
    passed_over: list[str] = []
    while free:
        suits: dict[int, list[_FreeGpu]] = {}
        for gpu in free:
            for need_id in gpu.need_ids:
                suits.setdefault(need_id, []).append(gpu)
        best = _best_job(session, suits, passed_over)
        if best is None:
            break
        gpu = _best_gpu(suits[best.need_id], best.base_model)
        placed = _place(session, "queued", [best.id], [gpu.id], [gpu.queue])
        if placed:
            placements += placed
            free.remove(gpu)
        else:
            passed_over.append(best.id)
    return placements


def take_turn(session: Session) -> bool:
    return bool(session.scalar(_TAKE_TURN, {"key": int(Exclusive.PLACE)}))


def best_jobs_parameters(need_ids: list[int], passed_over: list[str]) -> dict[str, Any]:
    return {
        **share_parameters(),
        "need_ids": need_ids,
        "passed_over": passed_over,
        "look_ahead": _LOOK_AHEAD,
    }


def _best_job(
    session: Session, suits: dict[int, list[_FreeGpu]], passed_over: list[str]
) -> _Candidate | None:
    """The next job: an urgent one first, else by share and turn, with a short head start for one
    of the same tenant that finds its base model loaded."""
    rows = session.execute(_BEST_JOBS, best_jobs_parameters(list(suits), passed_over)).all()
    if not rows:
        return None
    first, *others = [_Candidate(*row) for row in rows]
    head_start = timedelta(seconds=settings().warm_head_start_seconds)
    for one in (first, *others):
        if one.turn_at - first.turn_at <= head_start and _is_loaded(one, suits):
            return one
    return first


def _is_loaded(job: _Candidate, suits: dict[int, list[_FreeGpu]]) -> bool:
    return any(gpu.loaded_base == job.base_model for gpu in suits[job.need_id])


def _best_gpu(gpus: Sequence[_FreeGpu], base_model: str) -> _FreeGpu:
    """One that has the job's base in memory; else the plainest that will do, so that a large or
    labelled one stays for who asks for it; of these one that holds no base others may want."""
    return min(
        gpus,
        key=lambda gpu: (
            gpu.loaded_base != base_model,
            gpu.memory_bytes,
            gpu.labels,
            gpu.loaded_base is not None,
        ),
    )


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

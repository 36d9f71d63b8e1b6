"""The whole pool as it stands: what `celora why` and the forecasts are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from models.forecast import Lane, Party, Play, Sharer, Slot, Waiter
from models.gpu_wish import GpuWish
from models.paces import Estimate, Paces, Running, Work
from models.queries.gpus import POD_HOST, GpuView, list_gpus
from models.queries.lanes import FITS
from models.queries.paces import EVALUATE, SIZE, read_paces
from models.queries.parties import Limits, Parties, read_parties
from models.queries.stored import number
from models.settings import settings
from models.states import Stage

_FRONT = 8  # of each lane, at least
_PAGE = 50  # of a lane that has run out
# A GPU whose worker has not said yet that it is idle, or whose trainer is just leaving.
_SETTLING_SECONDS = 10.0
_MAY_WORK = frozenset({"free", "busy", "placed", "unknown"})


@dataclass(frozen=True, slots=True)
class Need:
    wish: GpuWish
    gpu_ids: frozenset[int]  # which have it, whether or not they take jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`limits` by ("tenant" | "user", id); `lanes` by id of the lane."""

    now: datetime
    gpus: list[GpuView]
    needs: dict[int, Need]
    limits: dict[tuple[str, int], Limits]
    lanes: dict[int, tuple[int, int, int]]  # tenant, user, need
    makes_room: dict[str, str]  # urgent job → the job that is asked to stop for it
    play: Play


def takes_jobs(gpu: GpuView) -> bool:
    """Whether jobs are placed there, now or when its present job is over."""
    return gpu.state in _MAY_WORK and not gpu.cordoned


def read_pool(session: Session, lane_id: int | None = None, *, rows: int = 400) -> Pool:
    """`rows`: of jobs that are read at first, over all lanes; `lane_id`: one that is wanted even
    if no job waits there (the last has just been placed)."""
    now = session.scalars(text("SELECT clock_timestamp()")).one()
    record = read_paces(session)
    gpus = [gpu for gpu in list_gpus(session) if gpu.host != POD_HOST]
    live = session.execute(_LIVE).all()
    fronts = session.execute(_FRONTS, {"rows": rows, "front": _FRONT}).all()
    lanes = {row.lane_id: (row.tenant_id, row.user_id, row.need_id) for row in fronts}
    if lane_id is not None and lane_id not in lanes:
        row = session.execute(_LANE, {"lane_id": lane_id}).one()
        lanes[lane_id] = (row.tenant_id, row.user_id, row.need_id)
    needs = _needs(session, {need for _, _, need in lanes.values()})
    parties = read_parties(
        session,
        {tenant for tenant, _, _ in lanes.values()},
        {user for _, user, _ in lanes.values()},
        live,
    )
    waiters: dict[int, list[Waiter]] = {}
    urgent: dict[int, bool] = {}
    for row in fronts:
        waiters.setdefault(row.lane_id, []).append(waiter(row, record.paces))
        urgent[row.lane_id] = row.urgent
    made = Play(
        slots=_slots(gpus, needs, live, record.paces, parties),
        lanes=[
            Lane(
                lane,
                parties.sharers[lanes[lane][0]],
                parties.users[lanes[lane][1]],
                lanes[lane][2],
                urgent[lane],
                found,
                _pages(session, lane, found[-1], record.paces) if len(found) >= _FRONT else None,
                needs[lanes[lane][2]].wish.own_pod,
            )
            for lane, found in waiters.items()
        ],
        half_life=settings().usage_half_life_seconds,
        head_start=timedelta(seconds=settings().warm_head_start_seconds),
        turnover=record.turnover_seconds,
        order_only=not any(map(takes_jobs, gpus)),
    )
    return Pool(
        now=now,
        gpus=gpus,
        needs=needs,
        limits=parties.limits,
        lanes=lanes,
        makes_room={row.preempted_for: row.job_id for row in live if row.preempted_for},
        play=made,
    )


def _pages(session: Session, lane: int, last: Waiter, paces: Paces) -> Callable[[], list[Waiter]]:
    """The next jobs of a lane, a page at each call."""
    at = (last.turn, last.id)

    def more() -> list[Waiter]:
        nonlocal at
        rows = session.execute(
            _NEXT, {"lane_id": lane, "turn_at": at[0], "job_id": at[1], "page": _PAGE}
        ).all()
        found = [waiter(row, paces) for row in rows]
        if found:
            at = (found[-1].turn, found[-1].id)
        return found

    return more


def _work(row: Row[Any]) -> Work:
    return Work(row.tenant_id, row.base_model, row.method, row.size, row.evaluate)


def waiter(row: Row[Any], paces: Paces) -> Waiter:
    """`row` as WAITER selects it."""
    steps = max(0, row.total_steps - row.step) if row.total_steps else None
    estimate = paces.of_waiting(_work(row), Stage(row.stage), steps)
    return Waiter(row.id, row.turn_at, row.base_model, estimate)


def rest(row: Row[Any], paces: Paces) -> Estimate:
    """How long a running attempt will go on; `row` as RUNNING selects it."""
    age = row.age or 0.0
    fresh = row.progress_age is not None and row.progress_age < age
    return paces.of_running(
        Running(
            _work(row),
            Stage(row.stage),
            row.step if fresh else row.start_step,
            row.start_step,
            row.total_steps,
            age,
            row.stage_age or 0.0,
            row.progress_age if fresh else None,
            row.limit_seconds,
            stopping=row.stop_requested is not None,
        )
    )


def _slots(
    gpus: list[GpuView],
    needs: dict[int, Need],
    live: Sequence[Row[Any]],
    paces: Paces,
    parties: Parties,
) -> list[Slot]:
    """Each GPU that takes jobs; one that takes none only as long as its job counts."""
    running = {row.gpu_id: row for row in live}
    slots = []
    for gpu in gpus:
        takes = takes_jobs(gpu)
        job = running.get(gpu.id)
        if not takes and job is None:
            continue
        slot = Slot(
            gpu.id,
            frozenset(id_ for id_, need in needs.items() if takes and gpu.id in need.gpu_ids),
            gpu.memory_bytes,
            len(gpu.labels),
            gpu.loaded_base,
        )
        if job is not None:
            slot.work = rest(job, paces)
            slot.start, slot.busy = -(job.age or 0.0), slot.work.seconds
            slot.sharer = parties.sharers.setdefault(job.tenant_id, Sharer(id=job.tenant_id))
            slot.user = parties.users.setdefault(job.user_id, Party())
            slot.base_model = job.base_model
        elif gpu.state != "free":
            slot.busy = _SETTLING_SECONDS
        slots.append(slot)
    return slots


def _needs(session: Session, ids: set[int]) -> dict[int, Need]:
    return {
        row.id: Need(GpuWish(row.memory_bytes, row.model, row.labels), frozenset(row.gpu_ids))
        for row in session.execute(_NEEDS, {"ids": list(ids)})
    }


WAITER = f"""
    id, turn_at, tenant_id, base_model, method, stage, step,
    coalesce(total_steps, ({number("verdict", "total_steps")})::int,
             ({number("spec", "max_steps")})::int)
        AS total_steps,
    {SIZE} AS size, {EVALUATE} AS evaluate
"""
# Queued, and not on its way to a GPU.
WAITS = """
    state = 'queued' AND waits_for IS NULL AND NOT EXISTS (
        SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
"""

_FRONTS = text(f"""
    SELECT lanes.id AS lane_id, lanes.user_id, lanes.need_id, lanes.urgent, front.*
    FROM lanes CROSS JOIN LATERAL (
        SELECT {WAITER} FROM jobs
        WHERE lane_id = lanes.id AND {WAITS}
        ORDER BY turn_at, id
        LIMIT (SELECT greatest(:front, :rows / greatest(1, count(*)))::int FROM lanes)
    ) AS front
""")  # noqa: S608 (joined from constants)

_NEXT = text(f"""
    SELECT {WAITER} FROM jobs
    WHERE lane_id = :lane_id AND {WAITS}
      AND (turn_at, id) > (:turn_at, CAST(:job_id AS text) COLLATE "C")
    ORDER BY turn_at, id
    LIMIT :page
""")  # noqa: S608 (joined from constants)

_LANE = text("SELECT * FROM lanes WHERE id = :lane_id")

_NEEDS = text(f"""
    SELECT gpu_needs.*,
           ARRAY(SELECT gpus.id FROM gpus WHERE {FITS}) AS gpu_ids
    FROM gpu_needs WHERE id = ANY (CAST(:ids AS bigint[]))
""")  # noqa: S608 (joined from constants)

# Of attempts on GPUs; a condition may be added.
RUNNING = f"""
    SELECT attempts.gpu_id, attempts.job_id, preempted_for, jobs.tenant_id,
           users.id AS user_id, jobs.base_model, jobs.method, jobs.stage, jobs.step,
           jobs.total_steps, jobs.stop_requested,
           {SIZE} AS size, {EVALUATE} AS evaluate, coalesce(attempts.start_step, 0) AS start_step,
           extract(epoch FROM clock_timestamp() - claimed_at)::float8 AS age,
           extract(epoch FROM clock_timestamp() - stage_at)::float8 AS stage_age,
           extract(epoch FROM clock_timestamp() - progress_at)::float8 AS progress_age,
           coalesce({number("jobs.spec", "time_limit_seconds")}, 'infinity')
               - (jobs.gpu_seconds - jobs.gpu_seconds_before_retry) AS limit_seconds
    FROM attempts
    JOIN jobs ON jobs.id = attempts.job_id
    LEFT JOIN users ON users.tenant_id = jobs.tenant_id AND users.name = jobs.user_name
    WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NOT NULL
"""  # noqa: S608 (joined from constants)
_LIVE = text(RUNNING)

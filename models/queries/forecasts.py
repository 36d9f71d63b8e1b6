"""The table `forecasts`: what `celora why` would say of the first of the queue, for all to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from models.queries.fence import Exclusive, try_exclusive
from models.queries.pool import Pool, read_pool
from models.queries.reasons import Blocker, blocker, expected, making_room, may_come
from models.queries.waiting import not_prepared, predecessor
from models.tables import Forecast

FORECAST_JOBS = 1000
_ROWS = 1500  # read at once
_LANES_TO_PREPARE = 50


@dataclass(frozen=True, slots=True)
class Row:
    job_id: str
    position: int | None
    reason: str
    sentence: str
    expected_start_at: datetime | None = None
    basis: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    at: datetime
    rows: list[Row]


def make(session: Session, younger_than: float) -> Made | None:
    """Forecast the first of the queue; reads only.

    None when there are forecasts not older than so many seconds, or another dispatcher is at it.
    """
    if not try_exclusive(session, Exclusive.FORECAST):
        return None
    age = func.extract("epoch", func.clock_timestamp() - func.max(Forecast.made_at))
    last = session.scalar(select(age))
    if last is not None and 0 <= last < younger_than:
        return None
    pool = read_pool(session, rows=_ROWS)
    rows = list(_in_order(pool))
    rows += _after_others(session, FORECAST_JOBS - len(rows))
    rows += _to_prepare(session, FORECAST_JOBS - len(rows))
    return Made(pool.now, rows)


def write(session: Session, made: Made) -> int:
    """Replace what is on record; returns how many rows stand. 0 while another one writes."""
    if not try_exclusive(session, Exclusive.FORECAST):
        return 0
    columns = {field.name: [getattr(row, field.name) for row in made.rows] for field in fields(Row)}
    session.execute(_WRITE, {**columns, "made_at": made.at})
    session.execute(delete(Forecast).where(Forecast.made_at < made.at))
    return len(made.rows)


def forecasts_of(session: Session, job_ids: Sequence[str]) -> dict[str, Forecast]:
    found = session.scalars(select(Forecast).where(Forecast.job_id.in_(job_ids)))
    return {row.job_id: row for row in found}


def _in_order(pool: Pool) -> Iterator[Row]:
    """Those that will be placed, the first placed first; then those that nothing will place."""
    known: dict[tuple[int, bool], Blocker] = {}
    count = 0
    for placed in pool.play.run(FORECAST_JOBS):
        key = (placed.lane.id, (placed.start or 0) <= pool.play.turnover)
        if key not in known:
            known[key] = blocker(pool, placed.lane.id, placed)
        found = making_room(pool, placed.waiter.id) or known[key]
        when = expected(pool, placed, found)
        yield Row(
            placed.waiter.id,
            placed.position,
            found.reason,
            found.sentence,
            when.start_at,
            when.basis,
        )
        count += 1
    for lane in pool.play.lanes:
        found = blocker(pool, lane.id, None)
        if pool.play.cut and may_come(pool, found):
            continue  # behind the first thousand, that is all
        when = expected(pool, None, found)
        for waiter in lane.waiters[: FORECAST_JOBS - count]:
            yield Row(waiter.id, None, found.reason, found.sentence, when.start_at, when.basis)
            count += 1


def _after_others(session: Session, most: int) -> Iterable[Row]:
    rows = session.execute(_AFTER_OTHERS, {"most": max(0, most)})
    return [Row(row.id, None, "waits_for", predecessor(row.first, row.state)) for row in rows]


def _to_prepare(session: Session, most: int) -> Iterator[Row]:
    known: dict[int, Blocker] = {}
    rows = session.execute(_TO_PREPARE, {"most": max(0, most), "lanes": _LANES_TO_PREPARE})
    for row in rows:
        if row.lane_id not in known:
            known[row.lane_id] = not_prepared(session, row.lane_id)
        yield Row(row.id, None, known[row.lane_id].reason, known[row.lane_id].sentence)


# A job that was deleted meanwhile must not fail all the others.
_WRITE = text("""
    INSERT INTO forecasts (
        job_id, position, reason, sentence, expected_start_at, basis, made_at)
    SELECT made.*, :made_at
    FROM unnest(
        CAST(:job_id AS text[]), CAST(:position AS integer[]), CAST(:reason AS text[]),
        CAST(:sentence AS text[]), CAST(:expected_start_at AS timestamptz[]),
        CAST(:basis AS text[])
    ) AS made (job_id, position, reason, sentence, expected_start_at, basis)
    JOIN jobs ON jobs.id = made.job_id COLLATE "C"
    ORDER BY made.job_id COLLATE "C"
    ON CONFLICT (job_id) DO UPDATE
    SET position = excluded.position, reason = excluded.reason, sentence = excluded.sentence,
        expected_start_at = excluded.expected_start_at, basis = excluded.basis,
        made_at = excluded.made_at
""")

_AFTER_OTHERS = text("""
    SELECT jobs.id, first.id AS first, first.state
    FROM jobs JOIN jobs AS first ON first.id = jobs.waits_for
    WHERE jobs.waits_for IS NOT NULL AND jobs.state = 'queued'
    LIMIT :most
""")

# The first of each lane, of so many lanes.
_TO_PREPARE = text("""
    SELECT front.*
    FROM (
        SELECT lanes.id FROM lanes
        WHERE EXISTS (SELECT FROM jobs WHERE lane_id = lanes.id AND state = 'pending')
        LIMIT :lanes
    ) AS lanes
    CROSS JOIN LATERAL (
        SELECT id, lane_id, turn_at FROM jobs
        WHERE lane_id = lanes.id AND state = 'pending'
          AND NOT EXISTS (
              SELECT FROM attempts WHERE attempts.job_id = jobs.id AND attempts.ended_at IS NULL)
        ORDER BY turn_at, id
        LIMIT :most
    ) AS front
    ORDER BY front.turn_at, front.id
    LIMIT :most
""")

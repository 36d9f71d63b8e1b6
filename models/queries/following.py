"""What came of jobs since a place in their story: for those who watch them, without loss or repeat.

"All after the last one I saw" would miss some. Ids of events are given before a commit, so one that
is committed late has a lower id than others that were seen already: events are told in the order of
the transactions that wrote them, and only when no older transaction can write any more. Metrics are
written under the lock of their job, so their times are in the order of their commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.states import TERMINAL
from models.tables import Job

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A transaction of ours that writes an event is over by then: it waits 5 s for a lock at most.
_LONGEST_TRANSACTION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """How far a watcher has got: the last event and the last point that it has seen."""

    event: tuple[int, int] = (0, 0)  # transaction, id
    point: tuple[int, int, str] = (0, 0, "")  # microseconds since 1970, step, name
    fence: int = 0  # of that point

    def merged(self, other: Place) -> Place:
        """The further of two, in each respect."""
        furthest = max((self, other), key=lambda place: place.point)
        return replace(furthest, event=max(self.event, other.event))

    def covers(self, other: Place) -> bool:
        """Whether everything up to `other` has been seen."""
        return self.event >= other.event and self.point >= other.point


class NewEvent(NamedTuple):
    job_id: str
    xact: int
    id: int
    created_at: datetime
    level: str
    kind: str
    message: str
    data: dict[str, Any] | None


class NewPoint(NamedTuple):
    job_id: str
    recorded_at: datetime
    step: int
    name: str
    value: float
    fence: int

    @property
    def key(self) -> tuple[int, int, str]:
        return microseconds(self.recorded_at), self.step, self.name


@dataclass(frozen=True, slots=True)
class News:
    """`more`: read again at once. `over`: the job has ended, and nothing will come any more."""

    job: Job
    after: Place
    events: list[NewEvent] = field(default_factory=list)
    points: list[NewPoint] = field(default_factory=list)
    more: bool = False
    over: bool = False


def microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def read_news(
    session: Session, places: Mapping[str, Place], *, most: int = 5000
) -> dict[str, News]:
    """Of several jobs at once, after the place of each; jobs that are gone are left out."""
    # The jobs first: one that has ended by now has written its last event before.
    jobs = session.scalars(select(Job).where(Job.id.in_(list(places)))).all()
    asked = [(job.id, places[job.id]) for job in jobs]
    limit = {"most": most + 1}
    events: dict[str, list[NewEvent]] = {job_id: [] for job_id, _ in asked}
    held: set[str] = set()
    for row in session.execute(_EVENTS, _event_places(asked) | limit):
        if row.held or row.job_id in held:
            held.add(row.job_id)
            continue
        events[row.job_id].append(NewEvent(*row[:8]))
    points: dict[str, list[NewPoint]] = {job_id: [] for job_id, _ in asked}
    for row in session.execute(_POINTS, _point_places(asked) | limit):
        points[row.job_id].append(NewPoint(*row))
    found = {
        job.id: _news(job, places[job.id], events[job.id], points[job.id], most=most)
        for job in jobs
    }
    return found | {job_id: replace(found[job_id], over=False) for job_id in held}


def known_here(session: Session, place: Place) -> Place:
    """A place whose transaction is yet to come was told by another server, before a restore: of
    what was written there the ids alone count."""
    if place.event[0] and session.scalar(_IS_TO_COME, {"xact": place.event[0]}):
        return replace(place, event=(0, place.event[1]))
    return place


def _news(
    job: Job, place: Place, events: list[NewEvent], points: list[NewPoint], *, most: int
) -> News:
    more = len(events) > most or len(points) > most
    events, points = events[:most], points[:most]
    after = place
    if events:
        after = replace(after, event=(events[-1].xact, events[-1].id))
    if points:
        after = replace(after, point=points[-1].key, fence=points[-1].fence)
    return News(job, after, events, points, more, over=job.state in TERMINAL and not more)


def _event_places(asked: list[tuple[str, Place]]) -> dict[str, Any]:
    return {
        "job_ids": [job_id for job_id, _ in asked],
        "xacts": [place.event[0] for _, place in asked],
        "ids": [place.event[1] for _, place in asked],
        "longest": _LONGEST_TRANSACTION_SECONDS,
    }


def _point_places(asked: list[tuple[str, Place]]) -> dict[str, Any]:
    return {
        "job_ids": [job_id for job_id, _ in asked],
        "times": [instant(place.point[0]) for _, place in asked],
        "steps": [place.point[1] for _, place in asked],
        "names": [place.point[2] for _, place in asked],
        "fences": [place.fence for _, place in asked],
    }


_IS_TO_COME = text("""
    SELECT :xact >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)
""")

_EVENTS = text("""
    SELECT asked.job_id, new.*
    FROM unnest(CAST(:job_ids AS text[]), CAST(:xacts AS bigint[]), CAST(:ids AS bigint[]))
        AS asked (job_id, xact, id)
    CROSS JOIN LATERAL (
        SELECT coalesce(written_by, 0) AS xact, events.id, created_at, level, kind, message, data,
               coalesce(written_by, 0) >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint
               AND created_at > clock_timestamp() - make_interval(secs => :longest) AS held
        FROM events
        WHERE events.job_id = asked.job_id
          AND (coalesce(written_by, 0), events.id) > (asked.xact, asked.id)
        ORDER BY coalesce(written_by, 0), events.id
        LIMIT :most
    ) AS new
    ORDER BY asked.job_id, new.xact, new.id
""")

# No index has the time: the points are found along the primary key, by step. Those that are new are
# of the same attempt and not before its last step, or of a later attempt, from where that began.
_POINTS = text("""
    SELECT asked.job_id, new.*
    FROM unnest(CAST(:job_ids AS text[]), CAST(:times AS timestamptz[]), CAST(:steps AS integer[]),
                CAST(:names AS text[]), CAST(:fences AS bigint[]))
        AS asked (job_id, at, step, name, fence)
    CROSS JOIN LATERAL (
        SELECT least(asked.step, min(coalesce(start_step, 0))) AS step FROM attempts
        WHERE attempts.job_id = asked.job_id AND attempts.fence > asked.fence
          AND claimed_at IS NOT NULL
    ) AS first
    CROSS JOIN LATERAL (
        WITH RECURSIVE names AS (
            (SELECT stage, name FROM metrics WHERE metrics.job_id = asked.job_id
             ORDER BY stage, name LIMIT 1)
            UNION ALL
            SELECT following.* FROM names CROSS JOIN LATERAL (
                SELECT stage, name FROM metrics
                WHERE metrics.job_id = asked.job_id
                  AND (metrics.stage, metrics.name) > (names.stage, names.name)
                ORDER BY stage, name LIMIT 1
            ) AS following
        )
        SELECT recorded_at, metrics.step, metrics.name, value, metrics.fence
        FROM names JOIN metrics
            ON metrics.job_id = asked.job_id AND metrics.stage = names.stage
            AND metrics.name = names.name AND metrics.step >= first.step
        WHERE (recorded_at, metrics.step, metrics.name) > (asked.at, asked.step, asked.name)
        ORDER BY recorded_at, metrics.step, metrics.name
        LIMIT :most
    ) AS new
    ORDER BY asked.job_id, new.recorded_at, new.step, new.name
""")

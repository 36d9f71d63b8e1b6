"""A job's story: events for people, metrics for curves, log lines, and counters of oddities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.queries.fence import require_fence
from models.states import Stage
from models.tables import Counter, Event, LogLine, Metric

# Channels of LISTEN: the dispatcher's wake-up, and "something happened to this job" for watchers.
WAKE_CHANNEL = "celora_wake"
JOB_CHANNEL = "celora_job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; what is None stays as it was on record."""

    step: int
    total_steps: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    tokens_per_second: float | None = None
    trained_tokens: int | None = None  # cumulative over resumes


class LogEntry(NamedTuple):
    """One captured line; without a time it gets the database's."""

    level: str
    line: str
    logged_at: datetime | None = None


class MetricRow(NamedTuple):
    stage: str
    name: str
    step: int
    value: float


def add_event(
    session: Session,
    job_id: str,
    kind: str,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
    wake: bool = False,
) -> None:
    """Append an event and tell the job's watchers (`wake`: the dispatcher too): one round trip."""
    session.execute(
        _EVENT,
        {
            "job_id": job_id,
            "kind": kind,
            "message": printable(message),
            "level": level,
            "data": data,
            "wake": wake,
        },
    )


# Built once, like every statement that each job runs several times: building one with SQLAlchemy
# costs more than running it.
_EVENT = text(f"""
    WITH told AS (
        INSERT INTO events (job_id, kind, message, level, data)
        VALUES (:job_id, :kind, :message, :level, :data)
    )
    SELECT pg_notify('{JOB_CHANNEL}', :job_id),
           CASE WHEN :wake THEN pg_notify('{WAKE_CHANNEL}', '')::text END
""").bindparams(bindparam("data", type_=JSONB(none_as_null=True)))  # noqa: S608 (constants)


def record_metrics(
    session: Session,
    job_id: str,
    fence: int,
    stage: Stage,
    points: Sequence[tuple[str, int, float]],
    *,
    progress: Progress | None = None,
) -> None:
    """Write (name, step, value) points, and the job's progress. Raises StaleFenceError.

    A step that is run again after a resume replaces its row: no step is counted twice.
    """
    require_fence(session, job_id, fence)
    if progress is not None:
        session.execute(_PROGRESS, {"job_id": job_id, **asdict(progress)})
    last = {(name, step): value for name, step, value in points}  # one statement, one row a key
    if not last:
        return
    session.execute(
        _METRICS,
        {
            "job_id": job_id,
            "fence": fence,
            "stage": stage,
            "names": [name for name, _ in last],
            "steps": [step for _, step in last],
            "values": list(last.values()),
        },
    )


# A column keeps its value where nothing is given.
_PROGRESS = text("""
    UPDATE jobs
    SET step = :step, progress_at = clock_timestamp(),
        total_steps = coalesce(CAST(:total_steps AS integer), total_steps),
        epoch = coalesce(CAST(:epoch AS double precision), epoch),
        train_loss = coalesce(CAST(:train_loss AS double precision), train_loss),
        tokens_per_second =
            coalesce(CAST(:tokens_per_second AS double precision), tokens_per_second),
        trained_tokens = coalesce(CAST(:trained_tokens AS bigint), trained_tokens)
    WHERE id = :job_id
""")

_METRICS = text("""
    INSERT INTO metrics (job_id, stage, name, step, value, fence, recorded_at)
    SELECT :job_id, :stage, point.name, point.step, point.value, :fence, clock_timestamp()
    FROM unnest(
        CAST(:names AS text[]), CAST(:steps AS integer[]), CAST(:values AS double precision[])
    ) AS point (name, step, value)
    ON CONFLICT (job_id, stage, name, step) DO UPDATE
    SET value = excluded.value, fence = excluded.fence, recorded_at = excluded.recorded_at
""")


def record_logs(
    session: Session,
    job_id: str,
    fence: int,
    stage: Stage,
    lines: Sequence[LogEntry | tuple[str, str]],
) -> None:
    """Append log lines, (level, line) or LogEntry, in order. Raises StaleFenceError."""
    require_fence(session, job_id, fence)
    if not lines:
        return
    entries = [LogEntry(*line) for line in lines]
    session.execute(
        _LOGS,
        {
            "job_id": job_id,
            "fence": fence,
            "stage": stage,
            "levels": [entry.level for entry in entries],
            "lines": [printable(entry.line) for entry in entries],
            "times": [entry.logged_at for entry in entries],
        },
    )


_LOGS = text("""
    INSERT INTO log_lines (job_id, fence, stage, level, line, logged_at)
    SELECT :job_id, :fence, :stage, entry.level, entry.line,
           coalesce(entry.logged_at, clock_timestamp())
    FROM unnest(
        CAST(:levels AS text[]), CAST(:lines AS text[]), CAST(:times AS timestamptz[])
    ) WITH ORDINALITY AS entry (level, line, logged_at, place)
    ORDER BY entry.place
""")


def set_activity(session: Session, job_id: str, fence: int, activity: str | None) -> None:
    """Say in words what the attempt does right now. Raises StaleFenceError."""
    require_fence(session, job_id, fence)
    said = None if activity is None else printable(activity)
    session.execute(_ACTIVITY, {"job_id": job_id, "activity": said})


_ACTIVITY = text("UPDATE jobs SET activity = :activity WHERE id = :job_id")


def events_of(session: Session, job_id: str, after_id: int = 0, limit: int = 1000) -> list[Event]:
    """Events in the order they were written, after one that was seen already."""
    return list(
        session.scalars(
            select(Event)
            .where(Event.job_id == job_id, Event.id > after_id)
            .order_by(Event.id)
            .limit(limit)
        )
    )


def logs_of(session: Session, job_id: str, after_id: int = 0, limit: int = 1000) -> list[LogLine]:
    return list(
        session.scalars(
            select(LogLine)
            .where(LogLine.job_id == job_id, LogLine.id > after_id)
            .order_by(LogLine.id)
            .limit(limit)
        )
    )


def metrics_of(
    session: Session, job_id: str, names: Sequence[str] | None = None, *, after_step: int = -1
) -> list[MetricRow]:
    """All points of a job, or those of some metrics, by stage, name and step."""
    statement = select(Metric.stage, Metric.name, Metric.step, Metric.value).where(
        Metric.job_id == job_id, Metric.step > after_step
    )
    if names is not None:
        statement = statement.where(Metric.name.in_(names))
    rows = session.execute(statement.order_by(Metric.stage, Metric.name, Metric.step))
    return [MetricRow(*row) for row in rows]


def loss_span(session: Session, job_id: str) -> list[float]:
    """The training loss of a job's first and of its last step on record; empty without any."""
    row = session.execute(_LOSS_SPAN, {"job_id": job_id}).one()
    return [] if row.first is None else [row.first, row.last]


_LOSSES = "SELECT value FROM metrics WHERE job_id = :job_id AND stage = 'train'"
_LOSS_SPAN = text(f"""
    SELECT ({_LOSSES} AND name = 'train_loss' ORDER BY step LIMIT 1) AS first,
           ({_LOSSES} AND name = 'train_loss' ORDER BY step DESC LIMIT 1) AS last
""")


def count(session: Session, counter_name: str, by: int = 1) -> None:
    """Count something that happened to no job in particular."""
    statement = upsert(Counter).values(
        name=counter_name, value=by, changed_at=func.clock_timestamp()
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Counter.name],
            set_={
                "value": Counter.value + statement.excluded.value,
                "changed_at": statement.excluded.changed_at,
            },
        )
    )


def printable(text: str) -> str:
    """`text` as Postgres can hold it: no NUL, no half a surrogate pair (both occur in output)."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")

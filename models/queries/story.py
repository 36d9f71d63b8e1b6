"""A job's story as OpenAI tells it: events and steps in one list, newest first, page by page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session


class Mark(NamedTuple):
    """A place in the list, whatever is added above it."""

    at: datetime
    kind: str  # e: an event, m: a step with its metrics
    number: int  # the event's id, the step


class Entry(NamedTuple):
    mark: Mark
    level: str
    message: str | None  # none for a step
    data: dict[str, Any] | None


def read_story(
    session: Session, job_id: str, *, limit: int, before: Mark | None = None
) -> list[Entry]:
    """`before`: the last one of the page before."""
    page: dict[str, Any] = {"job_id": job_id, "limit": limit}
    if before is None:
        rows = session.execute(_NEWEST, page)
    else:
        rows = session.execute(_OLDER, page | before._asdict())
    return [Entry(Mark(*row[:3]), *row[3:]) for row in rows]


def metrics_at(session: Session, job_id: str, steps: Sequence[int]) -> dict[int, dict[str, float]]:
    """The training metrics of some steps, by step and name."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for step, name, value in session.execute(_AT_STEPS, {"job_id": job_id, "steps": list(steps)}):
        found[step][name] = value
    return found


_AT_STEPS = text("""
    SELECT step, name, value FROM metrics
    WHERE job_id = :job_id AND stage = 'train' AND step = ANY (CAST(:steps AS integer[]))
""")

# A step is told where the trainer has told it: at its learning rate, or else, where held-out rows
# were read between two such steps, at their loss.
_TOLD = """
    SELECT created_at AS at, 'e' AS kind, id AS number, level, message, data
    FROM events WHERE job_id = :job_id
    UNION ALL
    SELECT recorded_at, 'm', step, 'info', NULL, NULL
    FROM metrics WHERE job_id = :job_id AND stage = 'train' AND name = 'learning_rate'
    UNION ALL
    SELECT recorded_at, 'm', step, 'info', NULL, NULL
    FROM metrics AS held_out
    WHERE job_id = :job_id AND stage = 'train' AND name = 'eval_loss' AND NOT EXISTS (
        SELECT FROM metrics
        WHERE job_id = :job_id AND stage = 'train' AND name = 'learning_rate'
          AND step = held_out.step
    )
"""
_WITH_DATA = """
    SELECT at, kind, number, level, message, coalesce(data, (
        SELECT jsonb_object_agg(metrics.name, value) FROM metrics
        WHERE kind = 'm' AND metrics.job_id = :job_id AND stage = 'train' AND step = number
    )) AS data
    FROM page ORDER BY at DESC, kind DESC, number DESC
"""
_NEWEST = text(f"""
    WITH page AS (
        SELECT * FROM ({_TOLD}) AS told ORDER BY at DESC, kind DESC, number DESC LIMIT :limit
    )
    {_WITH_DATA}
""")  # noqa: S608 (constants)
_OLDER = text(f"""
    WITH page AS (
        SELECT * FROM ({_TOLD}) AS told WHERE (at, kind, number) < (:at, :kind, :number)
        ORDER BY at DESC, kind DESC, number DESC LIMIT :limit
    )
    {_WITH_DATA}
""")  # noqa: S608 (constants)

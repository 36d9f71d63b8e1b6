"""When jobs are expected to end, from the same paces and forecasts as their expected start."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.forecasts import forecasts_of
from models.queries.paces import read_paces
from models.queries.pool import RUNNING, WAITER, rest, waiter
from models.tables import Job

_WAITING = text(f"SELECT {WAITER} FROM jobs WHERE id = ANY (CAST(:job_ids AS text[]))")  # noqa: S608
_RUNNING = text(f"{RUNNING} AND attempts.job_id = ANY (CAST(:job_ids AS text[]))")


def expected_finishes(session: Session, jobs: Sequence[Job]) -> dict[str, datetime]:
    """By job id: those that run, and those that wait for a GPU and are forecast to get one."""
    running = [job.id for job in jobs if job.state == "running"]
    queued = [job.id for job in jobs if job.state == "queued"]
    starts = {
        job_id: forecast.expected_start_at
        for job_id, forecast in (forecasts_of(session, queued) if queued else {}).items()
        if forecast.expected_start_at is not None
    }
    if not running and not starts:
        return {}
    now = session.scalars(text("SELECT clock_timestamp()")).one()
    paces = read_paces(session).paces
    found = {
        row.job_id: now + timedelta(seconds=rest(row, paces).seconds)
        for row in session.execute(_RUNNING, {"job_ids": running})
    }
    for row in session.execute(_WAITING, {"job_ids": list(starts)}):
        seconds = waiter(row, paces).work.seconds
        found[row.id] = max(now, starts[row.id]) + timedelta(seconds=seconds)
    return found

"""Following a job to its end, through restarts of the database."""

from __future__ import annotations

import time
from collections.abc import Iterator

from celora.client import get
from celora.views import Job
from models.errors import UnavailableError
from models.queries.history import JOB_CHANNEL
from models.queries.notify import Listener, listen
from models.states import JobState

POLL_SECONDS = 5.0
# A database that is being restarted or moved comes back sooner than this.
PATIENCE_SECONDS = 600.0


def wait(job: str | Job, *, timeout: float | None = None) -> Job:
    """Wait until a job is completed, failed, cancelled or paused, and return it.

    A database that goes away meanwhile is waited for, up to ten minutes. Raises TimeoutError after
    `timeout` seconds, NotFoundError, and UnavailableError.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for now in follow(job, poll_seconds=POLL_SECONDS, deadline=deadline):
        if isinstance(now, Job) and settled(now):
            return now
    raise TimeoutError(f"{job} has not ended within {timeout:g} seconds")


def settled(job: Job) -> bool:
    """True when nothing more happens by itself: finished, or paused."""
    return job.finished or job.state is JobState.PAUSED


def follow(
    job: str | Job, *, poll_seconds: float, deadline: float | None = None
) -> Iterator[Job | UnavailableError]:
    """The job again and again: at once when something happens to it, else every `poll_seconds`.

    While the database does not answer it yields that error instead, and raises it after ten
    minutes. It ends by itself only at `deadline` (time.monotonic()).
    """
    job_id = get(job).id
    lost_since: float | None = None
    while True:
        try:
            with listen(JOB_CHANNEL) as listener:
                while True:
                    yield get(job_id)
                    lost_since = None
                    seconds = _left(poll_seconds, deadline)
                    if seconds <= 0:
                        return
                    _sleep_until_news(listener, job_id, seconds)
        except UnavailableError as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > PATIENCE_SECONDS:
                raise
            yield error
        seconds = _left(1.0, deadline)
        if seconds <= 0:
            return
        time.sleep(seconds)


def _left(seconds: float, deadline: float | None) -> float:
    return seconds if deadline is None else min(seconds, deadline - time.monotonic())


def _sleep_until_news(listener: Listener, job_id: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if job_id in listener.wait(left):
            return

"""Copies a job's metrics to W&B, TensorBoard or MLflow, beside Postgres and never in its way.

Every tracker has one thread and one bounded queue per process, so a slow or broken one delays
neither the job nor the others; what it cannot take is dropped, and said once per job.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gpu_worker.tracker_runs import OPENERS, Point, TrackerRun, numbers
from models.spec import JobSpec
from models.states import Outcome

_MOST_WAITING = 1000  # batches of points

Warn = Callable[[str], None]


class Trackers:
    """The trackers one job asked for. No call blocks or raises.

    `warn` takes one sentence for the job's events; it is called from a tracker's thread.
    """

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._entries: list[_Entry] = []

    def start(self, spec: JobSpec, job_id: str) -> None:
        """Open a run, or go on with the one that an earlier attempt of the job opened."""
        for kind in spec.track:
            entry = _Entry(kind, spec, job_id, self._warn)
            self._entries.append(entry)
            entry.put(entry.open)

    def log(self, points: Sequence[Point]) -> None:
        """Values as (name, optimizer step, value)."""
        for entry in self._entries:
            entry.put(partial(entry.log, points))

    def finish(
        self, result: Mapping[str, Any] | None = None, outcome: Outcome = Outcome.COMPLETED
    ) -> None:
        """Send the result's numbers and close the runs; the job may go on with them later."""
        found = numbers(result or {})
        for entry in self._entries:
            entry.put(partial(entry.finish, found, outcome))
        self._entries.clear()


def wait(seconds: float) -> bool:
    """Give the trackers time to send what waits, before the process ends; True if all went."""
    done = [feed.mark() for feed in _feeds.values()]
    return all(mark.wait(seconds) for mark in done)


class _Entry:
    """One job on one tracker. All but `put` runs in the tracker's thread."""

    def __init__(self, kind: str, spec: JobSpec, job_id: str, warn: Warn) -> None:
        self._kind, self._spec, self._job_id, self._warn = kind, spec, job_id, warn
        self._run: TrackerRun | None = None
        self._failed = False
        self._dropped = False

    def open(self) -> None:
        self._run = OPENERS[self._kind](self._spec, self._job_id)

    def log(self, points: Sequence[Point]) -> None:
        if self._run is not None:
            self._run.log(points)

    def finish(self, result: Mapping[str, float], outcome: Outcome) -> None:
        if self._run is not None:
            self._run.finish(result, outcome)

    def put(self, work: Callable[[], None]) -> None:
        if not _feed(self._kind).put(lambda: self._do(work)) and not self._dropped:
            self._dropped = True
            self._warn(f"{self._kind} is too slow: some of the job's metrics will be missing there")

    def _do(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except ImportError:
            self._fail(f"{self._kind} is not installed on this worker: pip install 'celora[track]'")
        except Exception as error:  # noqa: BLE001  a tracker's trouble is never the job's
            first_line = (str(error).strip().splitlines() or [""])[0]
            self._fail(
                f"{self._kind} gets no more of this job: {type(error).__name__}: {first_line}"
            )

    def _fail(self, what: str) -> None:
        self._failed = True
        self._warn(what)


class _Feed:
    """A tracker's thread and queue."""

    def __init__(self, kind: str) -> None:
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._serve, name=f"tracker-{kind}", daemon=True).start()

    def put(self, work: Callable[[], None]) -> bool:
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            return False
        return True

    def mark(self) -> threading.Event:
        """Set as soon as all that waits now is done."""
        done = threading.Event()
        self.put(done.set)
        return done

    def _serve(self) -> None:
        while True:
            self._queue.get()()


_feeds: dict[str, _Feed] = {}


def _feed(kind: str) -> _Feed:
    """Made at first use: a thread would not survive the fork of a pool child."""
    if kind not in _feeds:
        _feeds[kind] = _Feed(kind)
    return _feeds[kind]

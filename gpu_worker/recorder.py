"""What a stage says while it runs, written to Postgres in batches by a thread of its own.

The trainer's reader only appends to a bounded buffer: it never waits for the database, so the
trainer never does. While the database is away the batch is kept and tried again; what is left at
the end goes into the transaction that ends the stage, so nothing is lost between the two.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from gpu_worker.protocol import Metrics
from models.errors import StaleFenceError, UnavailableError
from models.queries import attempts, history
from models.queries.history import LogEntry, Progress
from models.session import transaction
from models.states import Stage

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
_FLUSH_LOOK_SECONDS = 0.2
MOST_POINTS = 200_000  # a few minutes of a fast run without a database
MOST_LINES = 5_000

Points = list[tuple[str, int, float]]
Feed = Callable[[Points], None]


@dataclass
class _Batch:
    points: deque[tuple[str, int, float]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    lines: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    dropped_lines: int = 0
    progress: Progress | None = None
    activity: str | None = None
    trainer: tuple[int, bool] | None = None  # pid, warm
    written: list[threading.Event] = field(default_factory=list)  # set when that is so

    def __bool__(self) -> bool:
        return bool(
            self.points or self.lines or self.progress or self.trainer or self.activity is not None
        )


class Recorder:
    """Takes what one stage of an attempt says; `on_stale` is called when the fence is gone."""

    def __init__(
        self,
        job_id: str,
        fence: int,
        stage: Stage,
        *,
        on_stale: Callable[[], None],
        feed: Feed | None = None,
    ) -> None:
        self._job_id, self._fence, self._stage = job_id, fence, stage
        self._on_stale, self._feed = on_stale, feed
        self._batch = _Batch()
        self._progress = Progress(step=0)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def metrics(self, message: Metrics) -> None:
        points = [(point.name, point.step, point.value) for point in message.points]
        latest = {name: value for name, _, value in points}
        with self._lock:
            self._batch.points += points
            self._progress = replace(
                self._progress,
                step=message.step,
                epoch=message.epoch,
                trained_tokens=message.trained_tokens,
                train_loss=latest.get("train_loss", self._progress.train_loss),
                tokens_per_second=latest.get("tokens_per_second", self._progress.tokens_per_second),
            )
            self._batch.progress = self._progress
        if self._feed is not None:
            self._feed(points)

    def started(self, start_step: int, total_steps: int, trained_tokens: int = 0) -> None:
        """Back to where the run goes on: what a lost attempt had done beyond that is done again."""
        with self._lock:
            self._progress = Progress(
                step=start_step, total_steps=total_steps, trained_tokens=trained_tokens
            )
            self._batch.progress = self._progress
        self._wake.set()

    def log(self, level: str, line: str) -> None:
        with self._lock:
            if len(self._batch.lines) == MOST_LINES:
                self._batch.dropped_lines += 1  # the oldest makes room
            self._batch.lines.append(LogEntry(level, line, datetime.now(UTC)))

    def activity(self, what: str, *, at_once: bool = False) -> None:
        with self._lock:
            self._batch.activity = what
        if at_once:
            self._wake.set()

    def trainer(self, pid: int, *, warm: bool) -> None:
        with self._lock:
            self._batch.trainer = (pid, warm)

    def flush(self) -> None:
        """Return when all that was said until now is written, or the stage is about to end."""
        written = threading.Event()
        with self._lock:
            self._batch.written.append(written)
        self._wake.set()
        while not written.wait(_FLUSH_LOOK_SECONDS) and not self._closed.is_set():
            pass

    def stop(self) -> None:
        """End the thread; what it has not written stays for `write_rest`. It may have to wait for
        a database that does not answer, but never longer than a connection's time-outs."""
        self._closed.set()
        self._wake.set()
        self._thread.join()

    def abandon(self) -> None:
        """Write nothing more; what the thread is just sending falls to the fence."""
        self._closed.set()
        self._wake.set()

    def write_rest(self, session: Session) -> None:
        """Write what is left, after `stop`, in the caller's transaction, which ends the stage: what
        it was doing is of no interest any more. Raises StaleFenceError."""
        self._write(session, replace(self._batch, activity=None))

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            if self._closed.is_set():
                return  # the caller writes the rest: one transaction less on the way to the next
            with self._lock:
                batch, self._batch = self._batch, _Batch()
            try:
                if batch:
                    with transaction() as session:
                        self._write(session, batch)
            except StaleFenceError:
                self._closed.set()
                self._on_stale()
                return
            except UnavailableError as error:
                _log.warning("job %s: %s; trying again", self._job_id, error.what)
                self._keep(batch)
                continue
            except Exception:  # noqa: BLE001 (a batch that cannot be written must not stop the rest)
                _log.exception("job %s: a batch of its records was dropped", self._job_id)
            for written in batch.written:
                written.set()

    def _keep(self, older: _Batch) -> None:
        """Put a batch that was not written before what has come since."""
        with self._lock:
            newer = self._batch
            self._batch = _Batch(
                points=deque([*older.points, *newer.points], maxlen=MOST_POINTS),
                lines=deque([*older.lines, *newer.lines], maxlen=MOST_LINES),
                dropped_lines=older.dropped_lines
                + newer.dropped_lines
                + max(0, len(older.lines) + len(newer.lines) - MOST_LINES),
                progress=newer.progress or older.progress,
                activity=older.activity if newer.activity is None else newer.activity,
                trainer=newer.trainer or older.trainer,
                written=[*older.written, *newer.written],
            )

    def _write(self, session: Session, batch: _Batch) -> None:
        job_id, fence = self._job_id, self._fence
        # In the order in which rows are locked everywhere: the job's before the attempt's.
        if batch.points or batch.progress:
            history.record_metrics(
                session, job_id, fence, self._stage, list(batch.points), progress=batch.progress
            )
        if batch.activity is not None:
            history.set_activity(session, job_id, fence, batch.activity)
        if batch.lines:
            lines = list(batch.lines)
            if batch.dropped_lines:
                lines.insert(0, LogEntry("warn", f"{batch.dropped_lines} lines were dropped"))
            history.record_logs(session, job_id, fence, self._stage, lines)
        if batch.trainer:
            pid, warm = batch.trainer
            attempts.record_trainer(session, job_id, fence, pid=pid, warm=warm)

"""`celora watch`: a job's progress until its end, in a good terminal, a poor one, or a log file."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celora.cli.output import JobId, is_poor_terminal
from celora.cli.progress import Progress, panel, plain_line
from celora.views import Event, Job
from models.errors import UnavailableError
from models.states import JobState

POLL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0  # between plain lines that tell of nothing but steps
_WIDEST = 100

_EXIT_CODES = {JobState.COMPLETED: 0, JobState.FAILED: 1, JobState.CANCELLED: 4, JobState.PAUSED: 4}


def watch(job: JobId) -> int:
    """Watch a job until it ends.

    Exit code: 0 completed, 1 failed, 4 cancelled or paused. Ctrl-C leaves the job running.
    """
    return watch_job(job)


def watch_job(job_id: str) -> int:
    from celora.client import get

    try:
        ended = show(get(job_id))
    except KeyboardInterrupt:
        print(f"{job_id} goes on; `celora cancel {job_id}` stops it")
        raise
    conclude(ended)
    return exit_code(ended)


def exit_code(job: Job) -> int:
    return _EXIT_CODES.get(job.state, 0)


def show(job: Job, each: Callable[[], None] = lambda: None) -> Job:
    """Draw the job's progress until it ends or is paused; returns it.

    `each` is called at each look. It lives through a restart of the database.
    """
    from celora.follow import follow, settled

    progress = Progress(job)
    with _view(progress) as draw:
        for news in follow(job, poll_seconds=POLL_SECONDS):
            each()
            try:
                if isinstance(news, UnavailableError):
                    raise news
                _take(progress, news)
            except UnavailableError:
                progress.trouble = "the database does not answer; trying again"
            draw()
            if progress.trouble is None and settled(progress.job):
                break
    return progress.job


def conclude(job: Job) -> None:
    """The last words of a watch."""
    if job.state is JobState.COMPLETED:
        print(f"{job.id} is completed" + (f": {job.adapter_url}" if job.adapter_url else ""))
        print(f"celora job {job.id}   tells all of it")
    elif job.error:
        from celora.cli.failures import say_error

        say_error(error_text(job.error))
    elif job.state is JobState.PAUSED:
        print(f"{job.id} is paused; `celora resume {job.id}` lets it go on")
    else:
        print(f"{job.id} is {job.state}")


def error_text(error: dict[str, object]) -> str:
    """jobs.error as a paragraph: what, where, remedy, and the rows that are wrong."""
    where = f"{error['where']}: " if error.get("where") else ""
    lines = [f"{where}{error.get('message')}"]
    problems = error.get("problems")
    if isinstance(problems, list):
        lines += [f"  line {p['line']}: {p['what']} ({p['remedy']})" for p in problems]
        total = error.get("problem_count")
        if isinstance(total, int) and total > len(problems):
            lines.append(f"  … and {total - len(problems)} more")
    if error.get("remedy"):
        lines.append(f"  What to do: {error['remedy']}")
    return "\n".join(lines)


def _take(progress: Progress, job: Job) -> None:
    """Fetch what is new since the last look: losses and events."""
    from celora.client import events
    from models.queries.history import metrics_of
    from models.session import transaction

    last_event = progress.events[-1].id if progress.events else 0
    last_step = min(max(progress.losses, default=-1), job.step)
    with transaction() as session:
        points = metrics_of(session, job.id, ["train_loss"], after_step=last_step)
        held_out = metrics_of(session, job.id, ["eval_loss"])  # few, and later than their steps
    progress.update(
        job,
        {point.step: point.value for point in points},
        events(job, after=last_event),
        time.monotonic(),
        {point.step: point.value for point in held_out},
    )


@contextmanager
def _view(progress: Progress) -> Iterator[Callable[[], None]]:
    if is_poor_terminal():
        yield _PlainView(progress).draw
        return
    from rich.live import Live

    from celora.cli.output import console

    with Live(console=console(), auto_refresh=False, transient=False) as live:

        def draw() -> None:
            room = shutil.get_terminal_size()
            drawn = panel(progress, min(_WIDEST, room.columns), room.lines)
            live.update(drawn, refresh=True)

        yield draw


class _PlainView:
    """Lines that make sense in a log file: each event, what is being done, and now and then the
    steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._told_event = 0
        self._told: tuple[object, ...] = (None, None, None)
        self._told_at = 0.0

    def draw(self) -> None:
        events: list[Event] = [e for e in self.progress.events if e.id > self._told_event]
        for event in events:
            mark = "" if event.level == "info" else f"{event.level}: "
            print(f"{event.created_at.astimezone():%H:%M:%S}  {mark}{event.message}", flush=True)
            self._told_event = event.id
        job, now = self.progress.job, time.monotonic()
        trained = job.total_steps is not None and job.step == job.total_steps
        # Counts change all the time; what is being counted does not.
        doing = re.sub(r"[\d.,]+", "", job.activity or "")
        worth = (doing, self.progress.trouble, trained)
        due = now - self._told_at > _PLAIN_SECONDS and job.state is JobState.RUNNING
        if not job.finished and (worth != self._told or due):
            print(plain_line(self.progress), flush=True)
            self._told, self._told_at = worth, now

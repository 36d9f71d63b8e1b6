"""`celora logs`: what the trainer of a job printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, JobId

if TYPE_CHECKING:
    from celora.views import LogLine

_PAGE = 1000


def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Only the last so many lines.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's log lines, the oldest first. With --json, one object a line."""
    from celora.client import get
    from celora.follow import follow as follow_job
    from celora.follow import settled
    from celora.views import Job

    now = get(job)
    reader = _Reader(now.id, as_json)
    lines = reader.unseen()
    reader.show(lines if tail is None else lines[max(0, len(lines) - tail) :])
    if follow and not settled(now):
        for news in follow_job(now, poll_seconds=1.0):
            if isinstance(news, Job):
                reader.show(reader.unseen())
                if settled(news):
                    break
    if not reader.seen:
        print(f"{now.id} has no log lines yet", file=sys.stderr)


class _Reader:
    def __init__(self, job_id: str, as_json: bool) -> None:
        self.job_id = job_id
        self.as_json = as_json
        self.seen = 0  # the id of the last line

    def unseen(self) -> list[LogLine]:
        from celora.client import logs

        lines: list[LogLine] = []
        while page := logs(self.job_id, after=self.seen, limit=_PAGE):
            lines += page
            self.seen = page[-1].id
        return lines

    def show(self, lines: list[LogLine]) -> None:
        for line in lines:
            if self.as_json:
                print(line.model_dump_json())
            else:
                mark = "" if line.level in {"debug", "info"} else f"{line.level}: "
                print(f"{line.logged_at:%H:%M:%S} {line.stage} {mark}{line.line}")
        sys.stdout.flush()

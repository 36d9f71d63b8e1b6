"""Commands that list jobs and change one: jobs, why, cancel, pause, resume, retry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli.output import (
    AsJson,
    JobId,
    age,
    console,
    expected_start,
    print_json,
    short_id,
    state_text,
    table,
    until,
)

if TYPE_CHECKING:
    from celora.views import Job


def jobs(
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's jobs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    after: Annotated[
        str | None, typer.Option(metavar="JOB", help="The last job of the page before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    import celora

    found = celora.jobs(state=state, tenant=tenant, limit=limit, after=after)
    if as_json:
        print_json(found)
        return
    if not found:
        print("No jobs. `celora submit --help` tells how to make one.")
        return
    starts = _starts([job.id for job in found if job.state in {"pending", "queued"}])
    console().print(
        table(
            ["job", "name", "tenant", "method", "state", "stage", "steps", "loss", "age", "starts"],
            (
                (
                    short_id(job.id),
                    job.name or "",
                    job.tenant,
                    job.method if job.purpose == "tune" else str(job.purpose),
                    state_text(job.state),
                    "" if job.finished else job.stage,
                    f"{job.step}/{job.total_steps}" if job.total_steps else "",
                    "" if job.train_loss is None else f"{job.train_loss:.4g}",
                    age(job.created_at),
                    starts.get(job.id, ""),
                )
                for job in found
            ),
            right="steps loss age",
            spare=["method", "tenant", "age", "loss", "stage", "starts", "name"],
        )
    )
    if len(found) == limit:
        print(f"More: celora jobs --after {found[-1].id}")


def _starts(job_ids: list[str]) -> dict[str, str]:
    """Where each stands and when it is expected to start, by the dispatcher's last forecast."""
    from models.queries.forecasts import forecasts_of
    from models.session import transaction

    if not job_ids:
        return {}
    with transaction() as session:
        found = forecasts_of(session, job_ids)
    return {
        job_id: " ".join(
            ([f"#{row.position}"] if row.position else [])
            + ([until(row.expected_start_at)] if row.expected_start_at else [])
        )
        for job_id, row in found.items()
    }


def why(job: JobId, as_json: AsJson = False) -> None:
    """Say why a job waits, how many go before it, and when it is expected to start."""
    import celora

    answer = celora.why(job)
    if as_json:
        print_json(answer)
        return
    if answer.reason == "finished":
        _print_end(celora.get(job))
        return
    place = f" (number {answer.position} in the queue)" if answer.position else ""
    print(f"{answer.sentence}{place}")
    if answer.expected_start_at is not None:
        print(f"Expected start: {expected_start(answer)}.")


def _print_end(job: Job) -> None:
    from celora.cli.watch import error_text

    print(f"It does not wait: it is {job.state}.")
    if job.error:
        print(error_text(job.error))
    print(f"celora job {job.id}   tells all of it")


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job for good."""
    import celora

    _change(celora.cancel, job, as_json)


def pause(job: JobId, as_json: AsJson = False) -> None:
    """Hold a job; a running one writes a checkpoint first."""
    import celora

    _change(celora.pause, job, as_json)


def resume(job: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on from its newest checkpoint."""
    import celora

    _change(celora.resume, job, as_json)


def retry(job: JobId, as_json: AsJson = False) -> None:
    """Run a failed job again from its newest checkpoint."""
    import celora

    _change(celora.retry, job, as_json)


def _change(action: Callable[[str], Any], job: str, as_json: bool) -> None:
    changed = action(job)
    if as_json:
        print_json(changed)
    elif changed.stop_requested and not changed.finished:
        print(f"{changed.id} is {changed.state}; asked to stop ({changed.stop_requested})")
    else:
        print(f"{changed.id} is {changed.state}")

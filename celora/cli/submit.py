"""`celora submit`: a job from options, from a file, or both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli.output import AsJson, print_json
from celora.cli.spec_options import given_fields, in_options, read_spec_file, with_spec_options
from models.errors import SpecError

if TYPE_CHECKING:
    from celora.views import Job


@with_spec_options()
def submit(
    *,
    spec: Annotated[
        Path | None,
        typer.Option(help="A .json, .yaml or .toml file with fields; options win over it."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch the job run.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit code tells how it ended.")
    ] = False,
    tenant: Annotated[str, typer.Option(help="Whose share of the GPUs it uses.")] = "default",
    user: Annotated[
        str | None, typer.Option(help="Who submits. Default: who is logged in.", show_default=False)
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="A repeated key of the tenant returns the first job, unchanged."),
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Submit a fine-tuning job.

    celora submit --base-model BASE --dataset rows.jsonl --method qlora --watch
    """
    import celora

    fields = read_spec_file(spec) if spec is not None else {}
    try:
        job = celora.submit(
            tenant=tenant,
            user=user,
            idempotency_key=idempotency_key,
            **(fields | given_fields(options)),
        )
    except SpecError as error:
        raise in_options(error, "celora submit") from None
    if as_json and not wait:
        print_json(job)
    elif not as_json:
        print(f"submitted {job.id}", flush=True)
        _note_what_is_not_here(job)
    if watch and not as_json:
        from celora.cli.watch import watch_job

        return watch_job(job.id)
    if wait or watch:
        from celora.cli.watch import exit_code

        ended = celora.wait(job)
        if as_json:
            print_json(ended)
        else:
            print(ended)
        return exit_code(ended)
    if not as_json:
        print(f"celora watch {job.id}   shows how it goes")
    return 0


def _note_what_is_not_here(job: Job) -> None:
    """No refusal: the workers may be other machines, with other folders."""
    spec = job.spec
    for path in (spec.base_model, spec.dataset, spec.eval_dataset):
        if path is not None and path.startswith("/") and not Path(path).exists():
            said = f"note: {path} is not on this machine; the workers have to see it there"
            print(said, file=sys.stderr, flush=True)

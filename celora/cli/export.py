"""`celora export`: what a job has trained, as others load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli.output import AsJson, console, facts, print_json
from models.adapter_work import Format

if TYPE_CHECKING:
    from celora.views import Job

Reference = Annotated[
    str,
    typer.Argument(
        metavar="JOB|NAME/VERSION|NAME@ALIAS",
        help="A job's id (or its beginning, or `last`), support-bot/3, support-bot@production.",
        show_default=False,
    ),
]
Tenant = Annotated[str | None, typer.Option(help="Whose adapter; needed where names repeat.")]
User = Annotated[
    str | None, typer.Option(help="Who asks. Default: who is logged in.", show_default=False)
]


def export(
    reference: Reference,
    *,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="adapter: for PEFT and vLLM; merged: one bfloat16 model; gguf-ready: for"
            " llama.cpp's converter.",
        ),
    ] = "adapter",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Wait, and copy the result to this new folder."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit code tells how it ended.")
    ] = False,
    tenant: Tenant = None,
    user: User = None,
    as_json: AsJson = False,
) -> int:
    """Write what a job has trained as others load it; it is loaded again and compared.

    It runs on a free GPU, as a job of its own.
    """
    import celora
    from celora.cli.watch import exit_code
    from celora.exports import download, place

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise typer.BadParameter(f"{output} exists, and is not empty", param_hint="--output")
    job = celora.export(reference, form, tenant=tenant, user=user)
    if not wait and output is None:
        if as_json:
            print_json(job)
        else:
            print(f"export {job.id}\ncelora watch {job.id}   shows how it goes")
        return 0
    if not as_json:
        print(f"export {job.id}", flush=True)
    ended = _until_end(job, quiet=as_json)
    where = None
    if ended.result is not None and "export" in ended.result:
        where = str(download(ended, output)) if output is not None else place(ended)
    if as_json:
        print_json(ended.model_dump(mode="json") | {"place": where})
    else:
        _print(ended, where)
    return exit_code(ended)


def report_facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What was written and compared, for people."""
    found = [("written as", str(report["format"])), ("compared", str(report["said"]))]
    if "reference" in report:
        found += [("with", f"{report['reference']}, on {report['prompts']}")]
        found += [("allowed", str(report["allowed"]))]
    if effect := report.get("adapter_effect"):
        found.append(("the adapter's effect", _difference(effect)))
        found.append(("layers merged", f"{report['layers_changed']} of {report['layers']}"))
    if shift := report.get("shift_from_nf4"):
        found.append(("bfloat16 instead of NF4", _difference(shift)))
    return found + [("note", str(concern)) for concern in report.get("concerns", ())]


def commands(job: Job, place: str) -> list[str]:
    """What loads an export that lies at `place`."""
    from models.serving import how_to_load

    report = (job.result or {})["export"]
    return how_to_load(
        report["format"],
        place,
        base_model=job.base_model,
        rank=report.get("rank"),
        name=str(report["source"]).replace("/", "-"),
    )


def _print(job: Job, where: str | None) -> None:
    from celora.cli.watch import conclude

    conclude(job)
    if where is None:
        return
    console().print(facts(report_facts((job.result or {})["export"])))
    print(f"\n{where}")
    for line in commands(job, where):
        print(f"  {line}")


def _difference(found: dict[str, float]) -> str:
    return (
        f"logits differ by {found['mean_difference']:.3g} on average and"
        f" {found['max_difference']:.3g} at most, KL {found['mean_kl']:.2g} nats, the same"
        f" likeliest token at {100 * found['top1']:.1f} %"
    )


def _until_end(job: Job, *, quiet: bool) -> Job:
    """Follow it to its end, saying what keeps it."""
    import celora
    from celora.follow import POLL_SECONDS, follow, settled
    from celora.views import Job as JobView
    from models.errors import UnavailableError
    from models.states import JobState

    told = ""
    for now in follow(job, poll_seconds=POLL_SECONDS):
        if isinstance(now, UnavailableError):
            doing = now.what
        elif settled(now):
            return now
        elif now.state is JobState.QUEUED:
            why = celora.why(now)
            doing = why.sentence if why.reason != "running" else told
        else:
            doing = now.activity or told
        if doing != told and not quiet:
            print(doing, flush=True)
        told = doing
    assert isinstance(job, JobView)  # noqa: S101 (without a deadline the loop has no other end)
    return job

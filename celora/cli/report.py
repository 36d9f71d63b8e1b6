"""`celora report`: a run, or several side by side, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.errors import InputError


def report(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB…",
            help="A job's id, a unique beginning of it, or `last`; several with --compare.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write it: .html or .png.")
    ] = Path("report.html"),
    compare: Annotated[
        bool, typer.Option("--compare", help="Set several jobs side by side.")
    ] = False,
) -> None:
    """Write a report: curves, base against tuned, answers, data, specification, versions.

    One self-contained file. With --compare the runs' curves are laid over each other, and what
    differs in their specifications is listed. A .png holds the curves and base against tuned.
    """
    from celora.report.charts import charts_of, png
    from celora.report.facts import figures_of, read_runs
    from celora.report.page import html

    if len(jobs) > 1 and not compare:
        raise InputError("several jobs are given", remedy="add --compare to set them side by side")
    if output.suffix not in {".html", ".png"}:
        raise InputError("a report is .html or .png", where=str(output), remedy="-o report.html")
    runs = read_runs(jobs)
    try:
        if output.suffix == ".html":
            output.write_text(html(runs))
        else:
            title = " · ".join(run.label for run in runs)
            png(charts_of(runs), figures_of(runs), output, title)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", where=str(output), remedy="choose another place"
        ) from None
    print(output)

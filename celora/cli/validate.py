"""`celora validate`: look at training data without a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from celora.cli.output import AsJson, console, print_json
from celora.cli.spec_options import given_fields, in_options, with_spec_options
from celora.spec_fields import DataFields
from models.errors import SpecError


@with_spec_options(get_type_hints(DataFields))
def validate(
    dataset: Annotated[
        str, typer.Argument(help="Path, fsspec URL or hub name of the data.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Check training data: what is wrong with its rows, and what training on them would do.

    Each wrong line is told with its remedy; then copies, leaks into the evaluation, answers,
    labels, languages, and what looks private. With --base-model its tokenizer measures lengths and
    steps too. Exit code 2 when a job could not use the data; all else is advice.
    """
    import celora
    from celora.cli.verdict import print_verdict
    from celora.cli.watch import error_text

    try:
        with _progress() as tell:
            report = celora.validate(dataset, on_progress=tell, **given_fields(options))
    except SpecError as error:
        raise in_options(error, "celora validate") from None
    if as_json:
        print_json(report.record())
    else:
        print_verdict(report.verdict, console())
        if not report.ok:
            from celora.cli.failures import say_error

            say_error(error_text(report.record() | {"message": report.error}))
    return 0 if report.ok else 2


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None] | None]:
    """A line on standard error that changes in place, where there is a terminal for it."""
    if not sys.stderr.isatty():
        yield None
        return
    with console(stderr=True).status("reading") as status:
        yield lambda what, count: status.update(f"{what}: {count:,}")

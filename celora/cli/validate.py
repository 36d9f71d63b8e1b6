"""`celora validate`: look at training data without a job."""

from __future__ import annotations

from typing import Annotated

import typer

from celora.cli.output import AsJson, print_json
from models.spec import Shape


def validate(
    dataset: Annotated[
        str, typer.Argument(help="Path, fsspec URL or hub name of the data.", show_default=False)
    ],
    base_model: Annotated[
        str | None,
        typer.Option(help="Measure lengths with this base model's tokenizer.", show_default=False),
    ] = None,
    shape: Annotated[Shape, typer.Option(help="Record shape; `auto` detects it.")] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            "--columns",
            metavar="ROLE=COLUMN",
            help="Role → column name.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check training data: its shape, its rows, and each line that is wrong with its remedy.

    Exit code 2 when a job could not use it.
    """
    import celora
    from celora.cli.spec_options import given_fields

    mapped = given_fields({"columns": columns}).get("columns", {})
    report = celora.validate(dataset, base_model=base_model, shape=shape, columns=mapped)
    if as_json:
        print_json(report)
    else:
        print(report)
    return 0

"""`celora prices`: what an hour on each GPU model costs."""

from __future__ import annotations

from typing import Annotated

import typer

from celora.cli.output import AsJson, print_json, table
from models.errors import InputError

prices = typer.Typer(
    no_args_is_help=False,
    invoke_without_command=True,
    help="List and set what an hour on each GPU model costs.",
)


@prices.callback()
def overview(context: typer.Context, as_json: AsJson = False) -> None:
    """List what an hour on each GPU model costs."""
    if context.invoked_subcommand is None:
        _show(as_json)


@prices.command("set")
def change(
    model: Annotated[str, typer.Argument(help="Part of the model's name: H100, A10, cpu.")],
    price: Annotated[str, typer.Argument(metavar="PRICE|none", help="Per hour, in your currency.")],
    as_json: AsJson = False,
) -> None:
    """Set the price of an hour; `none` forgets it. The longest name that fits a GPU counts.

    Jobs that end from now on get a cost; those on record keep theirs.
    """
    from models.queries.rollups import set_price
    from models.session import transaction

    try:
        value = None if price == "none" else float(price)
    except ValueError:
        raise InputError(f"{price!r} is no number", where="PRICE", remedy="give 2.5, say") from None
    with transaction() as session:
        set_price(session, model, value)
    _show(as_json)


def _show(as_json: bool) -> None:
    from celora.cli.output import console
    from models.queries import rollups
    from models.session import transaction

    with transaction() as session:
        found = [(one.model, one.price_per_hour) for one in rollups.prices(session)]
    if as_json:
        print_json([{"model": model, "price_per_hour": price} for model, price in found])
    elif found:
        console().print(table(["model", "per hour"], [(m, f"{p:g}") for m, p in found]))
    else:
        print("No prices. `celora prices set H100 2.5` sets one.")

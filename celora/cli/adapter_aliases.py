"""What `celora adapters` does with aliases: move them, set their gates, tell their history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, age, console, print_json, table

if TYPE_CHECKING:
    from celora import AliasMove

Tenant = Annotated[
    str | None, typer.Option(help="Whose; needed where several use the name.", show_default=False)
]
User = Annotated[
    str | None, typer.Option(help="Who does it; you, by your login.", show_default=False)
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]
_Name = Annotated[str, typer.Argument(help="Name of the adapter: support-bot.")]
_Alias = Annotated[str, typer.Argument(help="The alias: production.")]


def alias(
    name: _Name,
    alias: _Alias,
    version: Annotated[
        str, typer.Argument(metavar="VERSION|none", help="Where it shall point; none: nowhere.")
    ],
    *,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Move it although a gate does not hold, and why."),
    ] = None,
    tenant: Tenant = None,
    user: User = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, if the gates set for it hold."""
    import celora
    from models.queries.adapters import version_number

    number = None if version == "none" else version_number(version.removeprefix(f"{name}/"))
    moved = celora.move_alias(name, alias, number, tenant=tenant, user=user, force=force)
    if as_json:
        print_json(moved)
    elif moved is None:
        print(f"{name}@{alias} is {name}/{number} already")
    else:
        _tell(moved)


def rollback(
    name: _Name,
    alias: _Alias,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the move.")] = None,
    tenant: Tenant = None,
    user: User = None,
    as_json: AsJson = False,
) -> None:
    """Give an alias back to the version that held it before."""
    import celora

    moved = celora.roll_back_alias(name, alias, tenant=tenant, user=user, reason=reason)
    if as_json:
        print_json(moved)
    else:
        _tell(moved)


def gate(
    name: _Name,
    alias: _Alias,
    metric: Annotated[
        str,
        typer.Argument(help="loss, perplexity, exact_match, bleu, rouge_l or win_rate."),
    ],
    *,
    against: Annotated[
        str, typer.Option(metavar="base|holder", help="The base model, or who holds the alias.")
    ] = "holder",
    least: Annotated[
        float, typer.Option(help="Least improvement, in the metric's unit; 0: not worse.")
    ] = 0.0,
    remove: Annotated[bool, typer.Option("--remove", help="Take the gate away.")] = False,
    tenant: Tenant = None,
    user: User = None,
    as_json: AsJson = False,
) -> None:
    """Set what a version must show before an alias moves to it.

    An improvement is a lower loss or perplexity, and a higher figure of the rest. Of a win rate the
    lower end of its 95 % interval counts; against the base it is what lies over one half.
    """
    from celora.client import current_user
    from models.gates import Gate
    from models.queries import adapter_gates
    from models.session import transaction

    with transaction() as session:
        if remove:
            adapter_gates.remove_gate(session, tenant, name, alias, metric, against=against)
        else:
            asked = Gate(metric, against, least)
            who = user or current_user()
            adapter_gates.set_gate(session, tenant, name, alias, asked, who=who)
    gates(name, tenant, as_json)


def gates(name: _Name, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """List the gates of a name's aliases."""
    from models.queries.adapter_gates import gates_of
    from models.session import transaction

    with transaction() as session:
        found = gates_of(session, tenant, name)
    if as_json:
        print_json(found)
    elif not found:
        print(f"{name} has no gates: its aliases move freely.")
    else:
        titles = ["alias", "metric", "against", "least", "set by", "age"]
        rows = [
            (one.alias, one.metric, one.against, f"{one.least:g}", one.set_by, age(one.set_at))
            for one in found
        ]
        console().print(table(titles, rows, right="least age"))


def history(
    name: _Name,
    alias: Annotated[str | None, typer.Argument(help="Only this alias.")] = None,
    *,
    limit: Limit = 50,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show who moved a name's aliases when, from where to where, and on what figures."""
    from models.queries.adapter_aliases import moves_of
    from models.session import transaction

    with transaction() as session:
        found = moves_of(session, tenant, name, alias, limit=limit)
    if as_json:
        print_json(found)
        return
    to = console()
    for move in found:
        when = f"{move.moved_at.astimezone():%F %T}"
        to.print(f"{when}  {_sentence(move)}", markup=False)
        for line in _reasons(move):
            to.print(f"    {line}", markup=False)
    if not found:
        print(f"No alias of {name} has moved yet.")


def _tell(move: AliasMove) -> None:
    print(_sentence(move))
    for line in _reasons(move):
        print(f"  {line}")


def _sentence(move: AliasMove) -> str:
    verb = move.kind.replace("_", " ")
    place = f"{move.from_version or 'none'} → {move.to_version or 'none'}"
    return f"{move.name}@{move.alias} {verb}: {place}, by {move.moved_by}"


def _reasons(move: AliasMove) -> list[str]:
    lines = [f"{'✓' if one['holds'] else '✗'} {one['why']}" for one in move.figures]
    return lines if move.reason is None else [*lines, f"reason: {move.reason}"]

"""`celora adapters`: versions under a name, and the aliases that point at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli import adapter_aliases
from celora.cli.adapter_aliases import Limit, Tenant, User
from celora.cli.output import AsJson, JobId, age, console, facts, print_json, size, table

if TYPE_CHECKING:
    from celora import AdapterVersion

adapters = typer.Typer(
    no_args_is_help=False,
    invoke_without_command=True,
    help="List adapters under a name; show one, move aliases, set their gates.",
)

_Reference = Annotated[str, typer.Argument(metavar="NAME/VERSION", help="support-bot/3.")]


@adapters.callback()
def overview(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Option(help="Only versions of this name.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List adapters under a name, the newest first."""
    import celora

    if context.invoked_subcommand is not None:
        return
    found = celora.adapters(name=name, tenant=tenant, limit=limit)
    if as_json:
        print_json([one.as_json() for one in found])
    elif found:
        console().print(_table(found))
    else:
        print("No adapters under a name. `celora submit --adapter-name` gives a job's one.")


@adapters.command("show")
def show(
    reference: Annotated[
        str,
        typer.Argument(metavar="NAME/VERSION", help="support-bot/3, or support-bot@production."),
    ],
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show what a version was made from, and how good it is."""
    import celora

    one = celora.adapter(reference, tenant=tenant)
    if as_json:
        print_json(one.as_json())
    else:
        console().print(facts(_facts(one)))


@adapters.command("register")
def register(
    job: JobId,
    name: Annotated[str, typer.Option(help="Name that it becomes the next version of.")],
    user: User = None,
    as_json: AsJson = False,
) -> None:
    """Make a completed job's adapter the next version of a name."""
    import celora

    made = celora.register_adapter(job, name, user=user)
    if as_json:
        print_json(made.as_json())
    else:
        print(f"{made.job_id} is {made.reference}")


@adapters.command("delete")
def delete(reference: _Reference, tenant: Tenant = None, user: User = None) -> None:
    """Give up a version that no alias holds; its files follow the rules of retention again."""
    import celora

    gone = celora.delete_adapter(reference, tenant=tenant, user=user)
    print(f"{gone} is deleted; its number is not used again")


for _command in ("alias", "rollback", "gate", "gates", "history"):
    adapters.command(_command)(getattr(adapter_aliases, _command))


def _table(found: list[AdapterVersion]) -> Any:
    titles = ["adapter", "tenant", "aliases", "method", "base", "loss", "win rate", "job", "age"]
    rows = [
        (
            one.reference,
            one.tenant,
            ", ".join(one.aliases),
            one.method if one.rank is None else f"{one.method} {one.rank}",
            one.base_model,
            _arrow(one, "loss"),
            "" if one.win_rate.rate is None else f"{one.win_rate.rate:.0%}",
            one.job_id,
            age(one.registered_at),
        )
        for one in found
    ]
    return table(titles, rows, right="loss age")


def _code(versions: dict[str, str]) -> str:
    """Celora's own version first."""
    others = ", ".join(f"{name} {of}" for name, of in sorted(versions.items()) if name != "celora")
    return f"Celora {versions.get('celora', '(not told)')}" + (f" with {others}" if others else "")


def _arrow(one: AdapterVersion, figure: str) -> str:
    """Base → tuned."""
    values = [one.evaluation.get(subject, {}).get(figure) for subject in ("base", "tuned")]
    if all(value is None for value in values):
        return ""
    return " → ".join("?" if value is None else f"{value:.4g}" for value in values)


def _facts(one: AdapterVersion) -> list[tuple[str, str]]:
    found = [
        ("adapter", one.reference),
        ("tenant", one.tenant),
        ("aliases", ", ".join(one.aliases) or "none"),
        ("job", one.job_id),
        ("base model", f"{one.base_model} @ {one.base_revision or 'not resolved'}"),
        ("method", one.method if one.rank is None else f"{one.method}, rank {one.rank}"),
        ("data digest", one.data_digest or "none"),
        ("seed", str(one.seed)),
        ("code", _code(one.code_versions)),
        ("files", f"{one.url} ({size(one.size_bytes)})"),
        ("digest", one.digest or "none"),
        ("registered", f"{one.registered_at.astimezone():%F %T} by {one.registered_by}"),
    ]
    figures = ("loss", "perplexity", "exact_match", "bleu", "rouge_l")
    found += [(figure.replace("_", " "), _arrow(one, figure) or "none") for figure in figures]
    return [*found, ("win rate", str(one.win_rate))]

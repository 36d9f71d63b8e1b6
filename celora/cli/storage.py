"""`celora storage`: who uses what, what the rules say, and what the next sweep deletes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli.output import AsJson, console, facts, print_json, size, table
from models.errors import InputError, NotFoundError, StateError

if TYPE_CHECKING:
    from models.queries.disk_use import Quota, Use
    from tasks.dispatcher.sweep import Swept

_KINDS = ("checkpoints", "adapters", "prepared", "uploads", "logs")

storage = typer.Typer(
    invoke_without_command=True,
    help="Show who uses what on disk, and what the next sweep deletes.",
)


@storage.callback()
def overview(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who uses what on disk, and what the next sweep deletes."""
    if context.invoked_subcommand is not None:
        return
    from models.queries import disk_use
    from models.session import transaction
    from tasks.dispatcher.sweep import preview

    with transaction() as session:
        uses, quotas = disk_use.uses(session), disk_use.quotas(session)
    if tenant is not None:
        uses = [use for use in uses if use.tenant == tenant]
        quotas = [quota for quota in quotas if quota.tenant == tenant]
        if not quotas:
            raise _no_such_tenant(tenant)
    planned = preview(with_orphans=False)
    if as_json:
        print_json(
            {
                "uses": uses,
                "quotas": [asdict(quota) for quota in quotas],
                "next_sweep": _record(planned),
            }
        )
        return
    if not quotas:
        print("No tenants yet: the first job of one makes it.")
    else:
        console().print(_uses(uses, quotas))
    print(f"\nBy the rules the next sweep deletes: {planned or 'nothing'}.")
    _print_problems(planned)


@storage.command()
def sweep(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete now what the rules let go and what belongs to nothing, instead of waiting."""
    from tasks.dispatcher import sweep as sweeping

    done = sweeping.preview() if dry_run else sweeping.sweep()
    if done is None:
        raise StateError("a sweep is under way", remedy="wait for it, or look at the dispatcher")
    if as_json:
        print_json(_record(done))
        return
    print(f"{'would delete' if dry_run else 'deleted'}: {done or 'nothing'}")
    _print_problems(done)


@storage.command()
def rules(
    tenant: Annotated[str, typer.Argument(help="Name of a tenant.")],
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON]",
            help='Its new rules, as {"checkpoints": {"max_age_days": 7}}; {} for the defaults.',
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a tenant's rules of retention, or set them."""
    from models.queries import retention_rules
    from models.retention import parse_rules
    from models.session import transaction

    with transaction() as session:
        if new is not None:
            fields = _object(new)
            parse_rules(fields)
            if not retention_rules.set_rules(session, tenant, fields):
                raise _no_such_tenant(tenant)
        found = next(
            (one for one in retention_rules.rules_of_tenants(session) if one.tenant == tenant), None
        )
    if found is None:
        raise _no_such_tenant(tenant)
    if as_json:
        print_json(found.rules)
        return
    if found.problem:
        print(f"{found.problem}\nUntil then the defaults hold:")
    for kind, rule in found.rules.model_dump().items():
        limits = [f"{name} {value}" for name, value in rule.items() if value is not None]
        console().print(facts([(f"{kind:<11}", ", ".join(limits) or "kept for ever")]))


def _uses(uses: list[Use], quotas: list[Quota]) -> Any:
    """One row for each tenant and each user, with bytes (and count) of every kind."""
    rows = []
    for quota in [*quotas, None]:
        mine = [
            use
            for use in uses
            if (quota is None and use.tenant is None)
            or (quota and quota.tenant == use.tenant and quota.user in {None, use.user})
        ]
        if quota is None and not mine:
            continue
        limit = "" if quota is None or quota.limit_bytes is None else size(quota.limit_bytes)
        rows.append(
            (
                ("(nobody)" if quota is None else quota.tenant)
                if quota is None or quota.user is None
                else "",
                "" if quota is None else quota.user or "",
                *(_cell(mine, kind) for kind in _KINDS),
                "" if quota is None else size(quota.used_bytes),
                limit,
            )
        )
    titles = ["tenant", "user", *_KINDS, "counted", "quota"]
    return table(titles, rows, right=" ".join([*_KINDS, "counted", "quota"]))


def _cell(uses: list[Use], kind: str) -> str:
    found = [use for use in uses if use.kind == kind]
    count, size_bytes = sum(use.count for use in found), sum(use.size_bytes for use in found)
    return f"{size(size_bytes)} ({count:,})" if count else ""


def _record(swept: Swept) -> dict[str, Any]:
    return {
        "counts": swept.counts,
        "size_bytes": swept.size_bytes,
        "problems": swept.problems,
    }


def _print_problems(swept: Swept) -> None:
    for problem in swept.problems:
        print(f"! {problem}")


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"these rules are no JSON: {error}", remedy='write {"logs": {"max_age_days": 30}}'
        ) from None
    if not isinstance(found, dict):
        raise InputError("rules are a JSON object", remedy='write {"logs": {"max_age_days": 30}}')
    return found


def _no_such_tenant(name: str) -> NotFoundError:
    return NotFoundError(f"there is no tenant {name}", remedy="`celora tenants` lists them")

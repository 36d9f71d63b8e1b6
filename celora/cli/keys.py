"""`celora keys`: keys of the HTTP API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, console, print_json, table
from models.errors import SetupError

if TYPE_CHECKING:
    from models.queries.api_keys import KeyView

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys of the HTTP API.")


@keys.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="Whose jobs and files it opens.")],
    *,
    user: Annotated[
        str | None,
        typer.Option(help="Who submits with it. Default: you.", show_default=False),
    ] = None,
    scope: Annotated[
        str, typer.Option(help="read; submit, which may read too; or admin, which may do all.")
    ] = "submit",
    name: Annotated[
        str | None, typer.Option(help="What it is for, in your words.", show_default=False)
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1, help="Days until it ends by itself. Default: never.", show_default=False
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="0: any number. Default: CELORA_API_REQUESTS_PER_MINUTE.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it: now and never again, for only its digest is kept."""
    from celora.client import current_user

    try:
        from celora.api.keys import create_key
    except ImportError:
        raise SetupError(
            "the HTTP API is not installed", remedy="pip install 'celora[api]'"
        ) from None

    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    made = create_key(
        tenant=tenant,
        user=user or current_user(),
        scopes=[scope],
        name=name,
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    if as_json:
        print_json({"id": made.id, "key": made.key})
    else:
        print(made.key)


@keys.command("list")
def show(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also keys that were revoked or are over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List keys by their beginnings, the oldest first."""
    from models.queries.api_keys import list_keys
    from models.session import transaction

    with transaction() as session:
        found = list_keys(session, tenant=tenant, revoked=everything)
    if as_json:
        print_json(found)
    elif found:
        titles = ["id", "key", "tenant", "user", "scope", "name", "last used", "ends"]
        console().print(table(titles, [_row(key) for key in found]))
    else:
        print("No keys; `celora keys create TENANT` makes one.")


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `celora keys list` shows it.")],
) -> None:
    """Revoke a key: from the next request on it opens nothing."""
    from models.queries.api_keys import revoke_key
    from models.session import transaction

    with transaction() as session:
        revoke_key(session, key)
    print(f"{key} is revoked")


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        key.id,
        f"{key.prefix}…",
        key.tenant,
        key.user,
        ", ".join(key.scopes),
        key.name or "",
        _day(key.last_used_at) or "never",
        "revoked" if key.revoked_at else _day(key.expires_at),
    )


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"

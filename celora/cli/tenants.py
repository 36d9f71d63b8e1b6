"""Commands about who shares the pool: list tenants, set weights and limits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from celora.cli.output import AsJson, console, print_json, size, table
from models.errors import InputError

tenants = typer.Typer(
    no_args_is_help=False,
    invoke_without_command=True,
    help="List tenants with what they use; set weights and limits.",
)


def _limit_option(words: str) -> Any:
    return typer.Option(metavar="N|none", help=words, show_default=False)


_Running = Annotated[str | None, _limit_option("Jobs on GPUs at once.")]
_Queued = Annotated[str | None, _limit_option("Prepared jobs that wait for a GPU.")]
_Hours = Annotated[str | None, _limit_option("GPU hours in a calendar month (UTC).")]
_Disk = Annotated[str | None, _limit_option("GB on disk, 10⁹ bytes each.")]
_EachUser = Annotated[str | None, _limit_option("The same, for each of its users.")]


@tenants.callback()
def overview(context: typer.Context, as_json: AsJson = False) -> None:
    """List tenants with what they use."""
    if context.invoked_subcommand is None:
        show(None, as_json)


@tenants.command("show")
def show(
    name: Annotated[str | None, typer.Argument(help="One tenant, with its users.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show tenants with their limits and what they use; one with its users."""
    from models.queries.tenants import list_tenants
    from models.session import transaction

    with transaction() as session:
        found = list_tenants(session, name)
    if as_json:
        print_json(found if name is None else found[0])
        return
    if not found:
        print("No tenants yet: the first job of one makes it.")
        return
    console().print(_table("tenant", found))
    if name is not None:
        console().print(_table("user", found[0].users))


@tenants.command("set")
def change(
    name: Annotated[str, typer.Argument(help="The tenant; a new one is made.")],
    *,
    user: Annotated[
        str | None, typer.Option(help="Set the limits of this user alone.", show_default=False)
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Its part of the pool beside others.", show_default=False)
    ] = None,
    max_running_jobs: _Running = None,
    max_queued_jobs: _Queued = None,
    gpu_hours_per_month: _Hours = None,
    disk_gb: _Disk = None,
    user_max_running_jobs: _EachUser = None,
    user_max_queued_jobs: _EachUser = None,
    user_gpu_hours_per_month: _EachUser = None,
    user_disk_gb: _EachUser = None,
    may_preempt: Annotated[
        bool | None,
        typer.Option(
            "--may-preempt/--may-not-preempt",
            help="Whether its urgent jobs may take the GPU of a preemptible one.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set a tenant's weight and limits, or with --user those of one user.

    Over a limit jobs wait, and `celora why` says so. `none` takes a limit away. The --user-…
    limits hold for each user of the tenant that has none of its own.
    """
    from models.queries.tenants import change_tenant, change_user
    from models.session import transaction

    texts: dict[str, tuple[str | None, type[int | float]]] = {
        "max_running_jobs": (max_running_jobs, int),
        "max_queued_jobs": (max_queued_jobs, int),
        "gpu_hours_per_month": (gpu_hours_per_month, float),
        "disk_gb": (disk_gb, float),
        "user_max_running_jobs": (user_max_running_jobs, int),
        "user_max_queued_jobs": (user_max_queued_jobs, int),
        "user_gpu_hours_per_month": (user_gpu_hours_per_month, float),
        "user_disk_gb": (user_disk_gb, float),
    }
    changes = dict(_limit(name, *given) for name, given in texts.items() if given[0] is not None)
    changes |= {} if weight is None else {"weight": weight}
    changes |= {} if may_preempt is None else {"may_preempt": may_preempt}
    with transaction() as session:
        if user is None:
            change_tenant(session, name, changes)
        else:
            change_user(session, name, user, changes)
    show(name, as_json)


token = typer.Typer(no_args_is_help=True, help="Give tenants their own tokens for the model hub.")
tenants.add_typer(token, name="token")


@token.command("set")
def set_token(
    name: Annotated[str, typer.Argument(help="The tenant.")],
) -> None:
    """Set a tenant's token for the model hub, read from standard input.

    Models and data are then downloaded with it and no other. It is stored sealed with
    CELORA_SECRET_KEY, which the workers need as well.
    """
    import sys
    from getpass import getpass

    from models.queries.hub_tokens import set_hub_token
    from models.secrets import require_key, seal
    from models.session import transaction

    require_key()
    given = getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not (text := given.strip()).isprintable() or not text or " " in text:
        raise InputError(
            "this is no token", where="standard input", remedy="pipe it in, or type it when asked"
        )
    sealed = seal(text)
    with transaction() as session:
        set_hub_token(session, name, sealed)
    print(f"{name} downloads with its own token from now on")


@token.command("remove")
def remove_token(
    name: Annotated[str, typer.Argument(help="The tenant.")],
) -> None:
    """Remove a tenant's token; it then downloads as the workers' own account."""
    from models.queries.hub_tokens import remove_hub_token
    from models.session import transaction

    with transaction() as session:
        had = remove_hub_token(session, name)
    print(f"the token of {name} is removed" if had else f"{name} had no token")


@token.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List the tenants that have a token of their own, and since when."""
    from models.queries.hub_tokens import hub_tokens
    from models.session import transaction

    with transaction() as session:
        found = hub_tokens(session)
    if as_json:
        print_json([{"tenant": tenant, "set_at": since} for tenant, since in found])
    else:
        rows = [(tenant, f"{since:%Y-%m-%d %H:%M}") for tenant, since in found]
        console().print(table(["tenant", "set"], rows))


def _limit(name: str, text: str | None, kind: type[int | float]) -> tuple[str, Any]:
    """Column and value of one option. Raises InputError."""
    column = name.replace("disk_gb", "disk_bytes")
    if text is None or text == "none":
        return column, None
    try:
        value = kind(text)
    except ValueError:
        raise InputError(
            f"{text!r} is no number", where=f"--{name.replace('_', '-')}", remedy="a number or none"
        ) from None
    return column, round(value * 1e9) if column != name else value


def _table(title: str, found: Any) -> Any:
    """Of tenants or of users: what they use, and of how much."""
    rows = [
        (
            one.name,
            f"{one.weight:g}" if title == "tenant" else "",
            _of(one.running, one.max_running_jobs),
            _of(one.queued, one.max_queued_jobs)
            if title == "tenant"
            else _of("", one.max_queued_jobs),
            one.pending if title == "tenant" else "",
            _of(f"{one.gpu_hours_this_month:.1f}", one.gpu_hours_per_month),
            _of(size(one.disk_used_bytes), one.disk_bytes and size(one.disk_bytes)),
            one.over_limit or "",
        )
        for one in found
    ]
    titles = [title, "weight", "running", "queued", "pending", "GPU hours", "disk", "over limit"]
    return table(titles, rows, right="weight running queued pending disk")


def _of(used: Any, limit: Any) -> str:
    return str(used) if limit is None else f"{used} of {limit}"

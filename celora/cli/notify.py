"""`celora notify`: who is told about jobs, where, and what became of each message."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, age, console, print_json, table, until
from models.errors import InputError

if TYPE_CHECKING:
    from models.queries.deliveries import DeliveryView

notify = typer.Typer(
    no_args_is_help=True, help="Tell people about jobs: by webhook, mail, chat; see the log."
)

_Tenant = Annotated[str, typer.Option(help="Tenant that the target belongs to.")]
_Name = Annotated[str, typer.Argument(metavar="TARGET", help="Name of the target.")]

_TEST_SECONDS = 60.0
_LOOK_SECONDS = 0.2


@notify.command()
def add(
    name: Annotated[str, typer.Argument(metavar="TARGET", help="A name for it.")],
    *,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="A webhook, which gets signed JSON.")
    ] = None,
    apprise: Annotated[
        bool,
        typer.Option("--apprise", help="A service; its Apprise URL is read from standard input."),
    ] = False,
    apprise_env: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="The same, from this environment variable."),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            help="What it hears of: started, completed, failed, cancelled, waiting, budget."
        ),
    ] = "completed,failed,cancelled",
    tenant: _Tenant = "default",
    job: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="Only of this job; without an address: a target there is"),
    ] = None,
    body: Annotated[
        str, typer.Option("--format", help="Of a webhook's body: celora, or openai for its client.")
    ] = "celora",
    wait_seconds: Annotated[float, typer.Option(help="Waiting for a GPU that is too long.")] = 3600,
    budget_percent: Annotated[
        float, typer.Option(help="Share of the month's GPU hours that is nearly all.")
    ] = 80,
    as_json: AsJson = False,
) -> None:
    """Add a target: a webhook, or a service that Apprise knows.

    A webhook's signing secret is printed once. An Apprise URL holds tokens: it is read from
    standard input or the environment, never an argument that others on the machine can see.
    """
    from celora import notify as api

    events = [part.strip() for part in on.split(",") if part.strip()]
    address = _apprise_url(apprise, apprise_env)
    if job is not None and webhook is None and address is None:
        api.notify_of(job, name, events)
        print(f"{name} hears of job {job}: {', '.join(events)}.")
        return
    made = api.add_target(
        name,
        webhook=webhook,
        apprise=address,
        on=events,
        tenant=tenant,
        job=job,
        format=body,
        wait_seconds=wait_seconds,
        budget_percent=budget_percent,
    )
    if as_json:
        print_json(made)
        return
    print(f"{name} of tenant {made.tenant} hears of: {', '.join(events)}.")
    if made.secret is not None:
        print(f"Signing secret, not shown again: {made.secret}")
    other = "" if made.tenant == "default" else f" --tenant {made.tenant}"
    print(f"Next: celora notify test {name}{other}")


@notify.command("list")
def show(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """List targets, without what must stay secret."""
    from celora import notify as api

    found = api.targets(tenant)
    if as_json:
        print_json(found)
    elif found:
        titles = ["target", "tenant", "address", "hears of", "jobs", "waiting", "given up"]
        rows = [
            (
                one.name,
                one.tenant,
                one.address + (" (openai)" if one.format == "openai" else ""),
                ", ".join(one.events) or "jobs that name it",
                one.jobs,
                one.waiting,
                one.failed,
            )
            for one in found
        ]
        console().print(table(titles, rows, right="jobs waiting"))
    else:
        print("No targets. `celora notify add` makes one.")


@notify.command()
def remove(name: _Name, tenant: _Tenant = "default") -> None:
    """Forget a target, its address and its secret. Its log stays."""
    from celora import notify as api

    dropped = api.remove_target(name, tenant=tenant)
    print(f"{name} is removed; messages that are not sent any more: {dropped}.")


@notify.command("test")
def send_test(name: _Name, tenant: _Tenant = "default", as_json: AsJson = False) -> int:
    """Have the dispatcher send a test message, and say what came of it.

    Exit code 1 where it did not arrive, 3 where no dispatcher sends.
    """
    from celora import notify as api

    delivery_id = api.send_test(name, tenant=tenant)
    deadline = time.monotonic() + _TEST_SECONDS
    while _is_open(seen := api.delivery(delivery_id)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if as_json:
        print_json(seen)
    elif _is_open(seen):
        print("No answer yet. Does a dispatcher run? `celora doctor` tells; `celora notify log`.")
    elif seen.state == "delivered":
        print(f"Delivered{f': {seen.status}' if seen.status else ''}.")
    else:
        print(f"Not delivered: {seen.cause}. {_next(seen)}")
    if _is_open(seen):
        return 3
    return 0 if seen.state == "delivered" else 1


@notify.command()
def log(
    *,
    target: Annotated[str | None, typer.Option(help="Only to this target.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="Only about this job.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only these: waiting, delivered, failed, dropped.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List messages, the newest first: tries, next try, and why the last one failed."""
    from celora import notify as api

    found = api.deliveries(tenant=tenant, target=target, job=job, state=state, limit=limit)
    if as_json:
        print_json(found)
    elif found:
        titles = ["id", "age", "target", "notice", "job", "state", "tries", "next", "cause"]
        rows = [
            (
                one.id,
                age(one.created_at),
                one.target,
                one.notice,
                one.job or "",
                one.state,
                one.attempts,
                "" if one.next_try_at is None else until(one.next_try_at),
                one.cause or "",
            )
            for one in found
        ]
        console().print(table(titles, rows, right="id tries"))
    else:
        print("No messages.")


@notify.command()
def retry(
    delivery: Annotated[int, typer.Argument(help="Its id in `celora notify log`.")],
    as_json: AsJson = False,
) -> None:
    """Send a message now: one that waits for its next try, or anew one that was given up."""
    from celora import notify as api

    seen = api.retry_delivery(delivery)
    if as_json:
        print_json(seen)
    else:
        print(f"{seen.id} is {seen.state}. {_next(seen)}")


def _apprise_url(from_input: bool, variable: str | None) -> str | None:
    """Raises InputError."""
    if variable is not None:
        url = os.environ.get(variable, "").strip()
        if not url:
            raise InputError("this variable is not set", where=variable, remedy="export it first")
        return url
    if not from_input:
        return None
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("Apprise URL: ").strip()
    return sys.stdin.readline().strip()


def _is_open(seen: DeliveryView) -> bool:
    """Not tried yet, or in the middle of it."""
    return seen.state == "waiting" and seen.cause is None


def _next(seen: DeliveryView) -> str:
    if seen.next_try_at is not None:
        return f"Next try {until(seen.next_try_at)}."
    return "" if seen.state == "delivered" else f"`celora notify retry {seen.id}` tries again."

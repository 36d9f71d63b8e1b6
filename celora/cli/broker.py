"""`celora broker`: RabbitMQ's users, each with what its role needs and no more."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from celora.cli.output import print_json
from models.errors import InputError

broker = typer.Typer(no_args_is_help=True, help="Users of RabbitMQ and what each of them may do.")


@broker.callback()
def _group() -> None:
    """Keeps `definitions` a command of its own while it is the only one."""


@broker.command()
def definitions(
    host: Annotated[
        list[str] | None,
        typer.Option(help="A host with GPU workers (its CELORA_HOST); for each one a user."),
    ] = None,
    any_host: Annotated[
        bool,
        typer.Option("--any-host", help="One user, gpu, for the GPU workers of all hosts."),
    ] = False,
    vhost: Annotated[str, typer.Option(help="Virtual host of RabbitMQ.")] = "celora",
) -> None:
    """Print what RabbitMQ loads: the vhost, a user for each role, and its permissions.

    The users are dispatcher, cpu, client, flower, and gpu-HOST for each --host; with --any-host
    one named gpu, for hosts that come and go, as a cluster's do: its workers could take each
    other's tickets. Each password is taken from CELORA_RABBITMQ_PASSWORD_USER (…_GPU_NODE1 for
    gpu-node1, or …_GPU for all hosts alike); only its salted hash is printed. Load it with
    `rabbitmqctl import_definitions FILE`, or name the file as `load_definitions` in rabbitmq.conf;
    a new password or host is loaded the same way.
    """
    from tasks import broker_roles

    roles = {
        "dispatcher": broker_roles.dispatcher(),
        "cpu": broker_roles.cpu(),
        "client": broker_roles.client(),
        "flower": broker_roles.flower(),
    } | {f"gpu-{name}": broker_roles.gpu(name) for name in host or ()}
    if any_host:
        roles["gpu"] = broker_roles.gpu_of_any_host()
    passwords = {user: _password(user) for user in roles}
    missing = [_variable(user) for user, password in passwords.items() if not password]
    if missing:
        raise InputError(
            "each user needs a password",
            where=", ".join(missing),
            remedy="set these variables, to passwords from `openssl rand -hex 24`",
        )
    print_json(
        broker_roles.definitions(
            vhost, {user: (passwords[user], role) for user, role in roles.items()}
        )
    )


def _password(user: str) -> str:
    of_all = os.environ.get(_variable("gpu"), "") if user.startswith("gpu-") else ""
    return os.environ.get(_variable(user)) or of_all


def _variable(user: str) -> str:
    return "CELORA_RABBITMQ_PASSWORD_" + re.sub(r"[^A-Z0-9]", "_", user.upper())

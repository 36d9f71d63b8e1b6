"""Each role does its work with the rights it is given, and is refused what is not its business.

Users of RabbitMQ as `celora broker definitions` makes them, roles of Postgres as `celora db
grant-…` does; the product's processes run under them, each under its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kombu
import psycopg
import pytest
from amqp.exceptions import AccessRefused
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import make_url, text

from models.queries import roles
from models.session import transaction
from tests.conftest import unavailable
from tests.foreign_app import foreign_app
from tests.rabbitmq_server import Rabbitmqctl, RabbitServer
from tests.scripted_jobs import FAST, at_step, in_state, job, submit, words
from tests.stack import Stack

pytestmark = pytest.mark.broker

HOST = "node1"
USERS = ("dispatcher", "cpu", "client", "flower", f"gpu-{HOST}")


@pytest.fixture(scope="module")
def brokers(rabbitmq: RabbitServer, broker: str, server_folder: Path) -> Iterator[dict[str, str]]:
    """User → URL of the module's vhost under that user."""
    control = rabbitmq.control
    if not isinstance(control, Rabbitmqctl):
        unavailable("users are made with rabbitmqctl, which may not be used here")
    assert isinstance(control, Rabbitmqctl)
    url = make_url(broker)
    # Users belong to the server, not to a vhost: names of this run's own.
    mine = str(url.database)
    passwords = {
        "CELORA_RABBITMQ_PASSWORD_" + user.upper().replace("-", "_"): f"{user}-of-{mine}"
        for user in USERS
    }
    printed = subprocess.run(
        [sys.executable, "-m", "celora", "broker", "definitions", "--vhost", mine, "--host", HOST],
        env=os.environ | passwords,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert not any(password in printed for password in passwords.values())
    defined = json.loads(printed)
    for user in defined["users"]:
        user["name"] += f"-{mine}"
    for permission in defined["permissions"]:
        permission["user"] += f"-{mine}"
    file = server_folder / "definitions.json"  # where RabbitMQ's own user can read it
    file.write_text(json.dumps(defined))
    control.run("import_definitions", str(file))
    yield {
        user: url.set(username=f"{user}-{mine}", password=f"{user}-of-{mine}").render_as_string(
            hide_password=False
        )
        for user in USERS
    }
    for user in USERS:
        control.run("delete_user", f"{user}-{mine}")


@pytest.fixture(scope="module")
def databases(database: str) -> Iterator[dict[str, str]]:
    """Role → URL of the module's database under that role."""
    url = make_url(database)
    names = {kind: f"{url.database}_{kind}" for kind in ("app", "worker", "reader")}
    grants = {"app": roles.grant_app, "worker": roles.grant_worker, "reader": roles.grant_reader}
    with transaction() as session:
        for kind, name in names.items():
            assert grants[kind](session, name)
            assert not grants[kind](session, name)  # again, as after an upgrade
            session.execute(text(f"ALTER ROLE {name} LOGIN PASSWORD 'secret'"))
    yield {
        kind: url.set(username=name, password="secret").render_as_string(hide_password=False)
        for kind, name in names.items()
    }
    with transaction() as session:
        for name in names.values():
            session.execute(text(f"DROP OWNED BY {name}"))
            session.execute(text(f"DROP ROLE {name}"))


@pytest.fixture(scope="module")
def pool(stack: Stack, brokers: dict[str, str], databases: dict[str, str]) -> Stack:
    stack.environment |= FAST | {"CELORA_HOST": HOST}

    def start(command: str, *arguments: str, user: str, role: str) -> None:
        stack.start(
            command,
            *arguments,
            CELORA_BROKER_URL=brokers[user],
            CELORA_DATABASE_URL=databases[role],
        )

    start("dispatcher", user="dispatcher", role="app")
    start("cpu-worker", "--concurrency", "1", user="cpu", role="worker")
    start("gpu-worker", "--devices", "cpu:1", user=f"gpu-{HOST}", role="worker")
    stack.wait_until("the slot is free", lambda: words() == ["free"])
    return stack


def test_a_job_runs_through_under_the_narrowest_rights(
    pool: Stack, brokers: dict[str, str]
) -> None:
    """With a checkpoint, a pause, an evaluation; handed in over the broker, and terminated."""
    spec = {"base_model": "scripted:?steps=5&checkpoint_every=2", "dataset": "none"}
    with foreign_app(brokers["client"], backend="rpc://") as client:
        handed_in = client.send_task("celora.submit", [spec | {"adapter_name": "bot"}])
        job_id = handed_in.get(timeout=60)
    in_state(pool, job_id, "completed")
    long = submit("steps=100000&step_seconds=0.05&checkpoint_every=5")
    at_step(pool, long, 6)
    pool.run("pause", long)
    in_state(pool, long, "paused")
    pool.run("resume", long)
    at_step(pool, long, job(long).step + 1)
    with foreign_app(brokers["flower"]) as flower:
        (running,) = flower.control.inspect([f"gpu0@{HOST}"], timeout=10).active().values()
        flower.control.revoke(running[0]["id"], terminate=True)
        in_state(pool, long, "cancelled", seconds=60)
    pool.wait_until("the slot is free", lambda: words() == ["free"])


@pytest.mark.parametrize(
    ("user", "queue"),
    [
        (f"gpu-{HOST}", "celora.cpu"),
        (f"gpu-{HOST}", "celora.gpu.node2.0"),
        ("cpu", f"celora.gpu.{HOST}.0"),
        ("client", "celora.cpu"),
        ("client", f"celora.gpu.{HOST}.0"),
        ("flower", f"celora.gpu.{HOST}.0"),
    ],
)
@pytest.mark.usefixtures("pool")
def test_nobody_reads_another_ones_queue(brokers: dict[str, str], user: str, queue: str) -> None:
    with (
        pytest.raises(AccessRefused, match="refused"),
        kombu.Connection(brokers[user]) as connection,
    ):
        connection.channel().basic_get(queue)


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("app", "CREATE TABLE public.mine (x int)"),
        ("app", "ALTER TABLE jobs ADD COLUMN mine int"),
        ("app", "DROP TABLE metrics"),
        ("app", "UPDATE alembic_version SET version_num = '0001'"),
        ("worker", "SELECT * FROM api_keys"),
        ("worker", "UPDATE gpu_prices SET price_per_hour = 0"),
        ("worker", "DELETE FROM adapter_aliases"),
        ("worker", "DELETE FROM hub_tokens"),
        ("worker", "TRUNCATE metrics"),
        ("worker", "CREATE TABLE public.mine (x int)"),
        ("reader", "SELECT * FROM jobs"),
        ("reader", "SELECT * FROM hub_tokens"),
        ("reader", "UPDATE gpus SET cordoned = true"),
    ],
)
def test_a_role_of_the_database_is_refused_what_is_not_its_business(
    databases: dict[str, str], role: str, statement: str
) -> None:
    with connected(databases[role]) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_reader_reads_the_views(databases: dict[str, str]) -> None:
    with connected(databases["reader"]) as connection:
        assert connection.execute("SELECT count(*) FROM admin.jobs").fetchone() is not None


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection

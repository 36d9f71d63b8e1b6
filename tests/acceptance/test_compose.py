"""docker/compose.yaml: each service's own command, with its own environment, as a process.

No engine runs here. What a container would give is given otherwise: servers of the tests' own with
the file's configuration, addresses of loopback for the names of services.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types
from compose_spec import PyCompose

from celora.local.binaries import runner
from tests import compose_file, own_rabbitmq, postgres_server
from tests.compose_file import FOLDER, MissingError, example, filled, services
from tests.environment import variables
from tests.postgres_server import OwnPostgres, free_port
from tests.scripted_jobs import FAST, words
from tests.stack import Stack

# What the host has and no service of ours does.
_FOREIGN = {"postgres", "rabbitmq", "prometheus", "grafana"}


def test_it_is_a_compose_file() -> None:
    spec = PyCompose.from_yaml(yaml.safe_dump(compose_file.composed(filled()))).to_spec()
    assert spec.services is not None
    assert set(spec.services) > _FOREIGN


def test_every_variable_is_in_the_example_and_none_opens_anything_by_itself() -> None:
    assert compose_file.used_variables() == set(example())
    secret = re.compile("PASSWORD|TOKEN|SECRET|KEY")
    assert not any(value for name, value in example().items() if secret.search(name))
    for name in (name for name in example() if secret.search(name) and "SERVING" not in name):
        with pytest.raises(MissingError, match=name):
            services(filled() | {name: ""})


def test_nothing_listens_for_others_and_nothing_runs_as_root() -> None:
    for name, service in services(filled()).items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if name not in _FOREIGN:
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"], name
    stages = (FOLDER / "Dockerfile").read_text().split("\nFROM ")
    assert all("\nUSER 10001:10001\n" in stage for stage in stages if stage.startswith("base AS"))
    images = [service["image"] for service in services(filled()).values()]
    assert not any(image.endswith(":latest") or ":" not in image for image in images)


@pytest.fixture(scope="module")
def database(server_folder: Path) -> Iterator[OwnPostgres]:
    """An empty database as the postgres image makes it: the owner, and roles.sh run once."""
    folder = server_folder / "compose-postgres"
    folder.mkdir(mode=0o755)
    service = services(filled())["postgres"]
    given = service["environment"]
    with postgres_server.own_server(folder) as server:
        with server.connect() as connection:
            connection.execute(
                f"CREATE ROLE {given['POSTGRES_USER']} LOGIN CREATEROLE"
                f" PASSWORD '{given['POSTGRES_PASSWORD']}'".encode()
            )
            connection.execute(
                f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}".encode()
            )
        subprocess.run(
            ["sh", str(FOLDER / "postgres" / "roles.sh")],
            env=given
            | {
                "PATH": f"{runner().bin}:{os.environ['PATH']}",
                "PGHOST": "127.0.0.1",
                "PGPORT": str(server.port),
                "PGPASSWORD": given["POSTGRES_PASSWORD"],
            },
            check=True,
        )
        yield server


@pytest.fixture(scope="module")
def broker_port(server_folder: Path) -> Iterator[int]:
    """A broker with rabbitmq.conf, and the users that the service `broker-users` wrote down."""
    folder = server_folder / "compose-rabbitmq"
    folder.mkdir()
    script = services(filled())["broker-users"]["command"][0].replace("/definitions", str(folder))
    run_script(script, services(filled())["broker-users"]["environment"])
    configuration = (FOLDER / "rabbitmq" / "rabbitmq.conf").read_text()
    configuration = configuration.replace("/etc/celora/definitions", str(folder))
    with own_rabbitmq.own_server(folder, configuration=configuration) as server:
        yield server.port


def run_script(script: str, environment: dict[str, str]) -> None:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-ec", script], env=os.environ | environment | {"PATH": programs}, check=True
    )


class Composed:
    """The file's services on this machine."""

    def __init__(self, database: OwnPostgres, broker_port: int, folder: Path) -> None:
        self.ports = {name: free_port() for name in ("api", "flower")}
        self._hosts = {
            "@postgres/": f"@127.0.0.1:{database.port}/",
            "@rabbitmq/": f"@127.0.0.1:{broker_port}/",
        }
        self.services = services(filled())
        self.stack = Stack(
            folder,
            FAST
            | {
                "CELORA_HOME": str(folder / "home"),
                "CELORA_LOCK_FOLDER": str(folder / "locks"),
                "CELORA_ALLOW_SCRIPTED": "true",
                "HF_HUB_OFFLINE": "1",
            },
        )

    def environment(self, name: str) -> dict[str, str]:
        given: dict[str, str] = dict(self.services[name]["environment"])
        for variable, value in given.items():
            for host, here in self._hosts.items():
                given[variable] = given[variable].replace(host, here)
            if value == "/var/lib/celora/artifacts":
                given[variable] = str(self.stack.folder / "artifacts")
        given.pop("HF_ENDPOINT", None)
        return given

    def start(self, name: str) -> None:
        command = list(self.services[name]["command"])
        if "--port" in command:
            place = command.index("--port") + 1
            command[place] = str(self.ports[name])
            # Inside a container every address is its own; here others could reach it.
            command[command.index("0.0.0.0")] = "127.0.0.1"  # noqa: S104 (it is taken away)
        self.stack.start(*command, name=name, **self.environment(name))


@pytest.fixture(scope="module")
def composed(
    database: OwnPostgres, broker_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Composed]:
    composed = Composed(database, broker_port, tmp_path_factory.mktemp("compose"))
    migrations: dict[str, Any] = composed.services["migrations"]
    run_script(migrations["command"][0], composed.environment("migrations"))
    with variables(**composed.environment("dispatcher")):
        try:
            for name in ("dispatcher", "api", "cpu-worker", "cpu-slot", "flower"):
                composed.start(name)
            composed.stack.wait_until("the slot is free", lambda: words() == ["free"])
            yield composed
        finally:
            composed.stack.close(seconds=0)


def test_a_job_goes_from_the_http_api_to_its_end(composed: Composed) -> None:
    stack = composed.stack
    stack.environment |= composed.environment("api")
    made = json.loads(stack.run("keys", "create", "team", "--json").stdout)
    url = f"http://127.0.0.1:{composed.ports['api']}"
    stack.wait_until("the API is ready", lambda: answers(f"{url}/readyz"))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=made["key"])
    request = urllib.request.Request(  # noqa: S310 (http to our own loopback)
        f"{url}/finetune",
        data=json.dumps({"base_model": "scripted:?steps=5", "dataset": "none"}).encode(),
        headers={"Authorization": f"Bearer {made['key']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 (as above)
        job_id = json.load(answer)["job_id"]
    stack.wait_until(
        "it succeeded",
        lambda: client.fine_tuning.jobs.retrieve(job_id).status == "succeeded",
        seconds=60,
    )
    client.close()


def test_the_health_checks_tell_that_all_is_well(composed: Composed) -> None:
    stack = composed.stack
    for name in ("dispatcher", "cpu-worker", "cpu-slot"):  # the image's own: `celora db current`
        stack.environment |= composed.environment(name)
        assert "database: " in stack.run("db", "current").stdout
    for name, port in composed.ports.items():
        program, flag, script = composed.services[name]["healthcheck"]["test"][1:]
        assert program == "python"
        check = [sys.executable, flag, re.sub(r":(8000|5555)/", f":{port}/", script)]
        stack.wait_until(f"{name} is healthy", partial(succeeds, check))


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 (http to our own loopback)
    except OSError:
        return False
    return True

"""The RabbitMQ that tests use: the one that is there, or one of our own.

CELORA_TEST_BROKER_URL names a server; without it the default address is used where it answers.
Each test module gets a vhost of its own there, made through the management HTTP API or through
rabbitmqctl. A URL that names a vhost is taken at its word: that vhost is for tests, and used as it
is. AMQP itself cannot make a vhost: where neither way is open, and where no server answers, one is
started for the run, from the installed programs or from Debian's package where root may install it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from models.errors import SetupError
from tests.own_rabbitmq import own_server
from tests.run_token import is_left_over

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672"
MANAGEMENT_PORT = 15672


class Control(Protocol):
    """A way to make and drop vhosts."""

    def vhosts(self) -> list[str]: ...
    def add(self, vhost: str) -> None: ...
    def delete(self, vhost: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Rabbitmqctl:
    program: str
    user: str  # the AMQP user that gets the permissions
    environment: dict[str, str]

    def vhosts(self) -> list[str]:
        return self.run("list_vhosts", "--quiet", "--no-table-headers").split()

    def add(self, vhost: str) -> None:
        self.run("add_vhost", vhost)
        self.run("set_permissions", "-p", vhost, self.user, ".*", ".*", ".*")

    def delete(self, vhost: str) -> None:
        self.run("delete_vhost", vhost)

    def run(self, *arguments: str) -> str:
        # Its Erlang runtime starts epmd where none runs: not on all interfaces.
        environment = os.environ | {"ERL_EPMD_ADDRESS": "127.0.0.1"} | self.environment
        done = subprocess.run(
            [self.program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"rabbitmqctl {arguments[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class ManagementApi:
    base: str
    user: str
    password: str

    def vhosts(self) -> list[str]:
        return [entry["name"] for entry in json.loads(self._call("GET", "vhosts"))]

    def add(self, vhost: str) -> None:
        self._call("PUT", f"vhosts/{vhost}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._call("PUT", f"permissions/{vhost}/{quote(self.user, safe='')}", everything)

    def delete(self, vhost: str) -> None:
        self._call("DELETE", f"vhosts/{vhost}")

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> bytes:
        login = b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 (http to the test broker's own host)
            f"{self.base}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 (as above)
            answer: bytes = reply.read()
            return answer


@dataclass(frozen=True, slots=True)
class RabbitServer:
    url: str  # without a vhost, or (control is None) with the vhost that is for tests
    control: Control | None

    @contextmanager
    def vhost(self, name: str) -> Iterator[str]:
        """A vhost of one's own for as long as the block runs; its URL."""
        if self.control is None:
            yield self.url
            return
        self.control.add(name)
        try:
            yield f"{self.url}/{name}"
        finally:
            self.control.delete(name)

    def sweep(self) -> None:
        """Drop the vhosts of test runs that were killed."""
        if self.control is not None:
            for name in self.control.vhosts():
                if is_left_over(name):
                    self.control.delete(name)


@contextmanager
def find_or_start(folder: Path, *, own: bool) -> Iterator[RabbitServer]:
    """A server for this run; `own` forces one of our own. Raises SetupError where there is none."""
    server = None if own else _find()
    if server is not None:
        server.sweep()
        yield server
        return
    with own_server(folder) as running:
        yield RabbitServer(
            running.url, Rabbitmqctl(running.rabbitmqctl, running.user, running.environment)
        )


def _find() -> RabbitServer | None:
    given = os.environ.get("CELORA_TEST_BROKER_URL")
    url = (given or DEFAULT_URL).rstrip("/")
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 5672
    if not _listens(host, port):
        if given:
            raise SetupError(
                f"no RabbitMQ answers at {host}:{port}",
                where="CELORA_TEST_BROKER_URL",
                remedy="mend it, or unset it to have a server started",
            )
        return None
    if parts.path:
        return RabbitServer(url, None)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    ways: list[Control] = [ManagementApi(f"http://{host}:{MANAGEMENT_PORT}", user, password)]
    program = shutil.which("rabbitmqctl")
    if program is not None and host in {"127.0.0.1", "localhost", "::1"}:
        ways.append(Rabbitmqctl(program, user, {}))
    for control in ways:
        try:
            control.vhosts()
        except (OSError, urllib.error.URLError, ValueError):
            continue
        return RabbitServer(url, control)
    if given:
        raise SetupError(
            "no vhost can be made there: no management API, and rabbitmqctl may not be used",
            where="CELORA_TEST_BROKER_URL",
            remedy="name a vhost that is for tests in the URL (amqp://…/NAME), or unset it",
        )
    return None


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True

"""Hosts for a test: network namespaces with addresses of their own, on a bridge to the test's side.

Nothing else is between them and the servers, which listen on the bridge's address: it has no port
to the outside. A host is cut off by taking its line down, as when somebody pulls the plug.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from models.errors import SetupError
from tests.run_token import is_left_over, run_name

_BRIDGE = re.compile(r"\bcelora(\d+)(?=:)")  # a name has 15 characters at most


def lacking() -> str | None:
    """What this machine does not give, in words; None where hosts can be made."""
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (Debian's package iproute2)"
    if os.geteuid() != 0:
        return f"network namespaces need root, and this is user {os.geteuid()}"
    name = run_name("trial")
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except SetupError as error:
        return f"this machine allows no network namespaces: {error.what}"
    return None


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    namespace: str
    line: str  # its end on the test's side

    def command(self, command: list[str]) -> list[str]:
        """The command line that runs `command` on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut_off(self) -> None:
        _ip("link", "set", self.line, "down")

    def heal(self) -> None:
        _ip("link", "set", self.line, "up")

    def reaches(self, address: str, port: int) -> bool:
        look = f"import socket; socket.create_connection(({address!r}, {port}), timeout=2)"
        done = subprocess.run(
            self.command([sys.executable, "-c", look]), capture_output=True, check=False
        )
        return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Network:
    address: str  # of the test's side, which all hosts reach
    hosts: tuple[Host, ...]


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Hosts of these names; gone at the end with all that runs on them. Raises SetupError."""
    _remove_left_overs()
    number, bridge = os.getpid() % 250 + 1, f"celora{os.getpid()}"
    subnet = f"198.18.{number}"  # kept for tests of networks (RFC 2544): no network of anybody's
    hosts = tuple(Host(name, run_name(name), f"cel{name}{os.getpid()}"[:15]) for name in names)
    try:
        _ip(
            "link", "add", bridge, "type", "bridge", "forward_delay", "0"
        )  # a healed line is up at once
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for place, host in enumerate(hosts, start=2):
            inside = ("-n", host.namespace)
            _ip("netns", "add", host.namespace)
            _ip("link", "add", host.line, "type", "veth", "peer", "eth0", "netns", host.namespace)
            _ip("link", "set", host.line, "master", bridge, "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "address", "add", f"{subnet}.{place}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
        yield Network(f"{subnet}.1", hosts)
    finally:
        for host in hosts:
            _remove(host.namespace)
        with suppress(SetupError):
            _ip("link", "delete", bridge)


def _remove_left_overs() -> None:
    """Of runs that were killed."""
    for namespace in Path("/run/netns").glob("celora_test_*"):
        if is_left_over(namespace.name):
            _remove(namespace.name)
    for pid in _BRIDGE.findall(_ip("-oneline", "link", "show", "type", "bridge")):
        if not psutil.pid_exists(int(pid)):
            _ip("link", "delete", f"celora{pid}")


def _remove(namespace: str) -> None:
    """With its processes, and with its end of the line the other one."""
    with suppress(SetupError):
        for pid in _ip("netns", "pids", namespace).split():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()
        _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise SetupError(f"ip {' '.join(arguments)}: {said or f'exit {done.returncode}'}")
    return done.stdout

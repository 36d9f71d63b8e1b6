"""A fence around this process, for code that is told by strangers where to go.

Python reports what it is about to do to audit hooks, and a hook can refuse it. This one lets
sockets connect to allowed addresses alone (the address itself, after any name was resolved and any
redirect was followed), lets files be read that belong to Python, and no program be started. It
cannot be undone.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.reach import allowed_private, is_in, is_public

_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_DATA = (
    "/etc/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/zoneinfo",
)
_FILES = ("/etc/mime.types",)
_DEVICES = ("/dev/null", "/dev/urandom")


def guard(private_hosts: str) -> list[str]:
    """Begin; returns the list that refusals are noted in."""
    names, networks = allowed_private(private_hosts)
    known = frozenset(_addresses(names))
    readable = tuple(f"{os.path.realpath(place)}/" for place in _readable()) + _FILES
    refused: list[str] = []

    def refuse(what: str) -> None:
        refused.append(what)
        raise PermissionError(what)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CONNECTIONS:
            address = _literal(arguments[1])
            if address is None or not (
                is_public(address) or address in known or is_in(address, networks)
            ):
                refuse(
                    "it leads to a private address that CELORA_NOTIFY_PRIVATE_HOSTS does not name"
                )
        elif event == "open" and not isinstance(arguments[0], int):  # not one that is open already
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path not in _DEVICES and not path.startswith(readable):
                refuse("it asks for a file of this machine")
        elif event in _PROGRAMS:
            refuse("it asks for a program of this machine")

    sys.addaudithook(watch)
    return refused


def _literal(address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name, a Unix socket, or anything else that is no address of the internet."""
    if not isinstance(address, tuple) or not address:
        return None
    try:
        return ipaddress.ip_address(str(address[0]).partition("%")[0])
    except ValueError:
        return None


def _addresses(names: Iterable[str]) -> Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    for name in names:
        try:
            found = socket.getaddrinfo(name, None)
        except OSError:
            continue
        yield from filter(None, (_literal(one[4]) for one in found))


def _readable() -> Iterable[Path | str]:
    yield from (sys.prefix, sys.base_prefix, *_DATA)
    yield from sysconfig.get_paths().values()
    for name in ("models", "tasks"):  # our own modules
        yield Path(__file__).parents[2] / name

"""Data from the web that cannot be turned on the house: `public+https://…`.

This is what a data set's URL becomes when it was given over HTTP, by somebody who may not reach
what this machine reaches. Every connection is looked at where it is made, so neither a name that
means another address a moment later nor a redirect leads to a private one.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from models.errors import InputError
from models.reach import allowed_private, is_in, is_public
from models.settings import settings

PREFIX = "public+"


def filesystem_for(url: str) -> tuple[Any, str]:
    """fsspec's file system for a `public+http(s)://` URL, and the path in it. Raises InputError."""
    from fsspec.implementations.http import HTTPFileSystem

    plain = url.removeprefix(PREFIX)
    require_public(plain)
    return HTTPFileSystem(get_client=_client, use_listings_cache=False), plain


def require_public(url: str) -> None:
    """Raise InputError for a URL whose host is unknown or has an address that is not for everybody.

    Asks the name server: not inside a transaction.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _refused(url, "this is no web address")
        known = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise _refused(url, "the host cannot be found") from None
    for *_, place in known:
        _require_allowed(str(place[0]), url)


async def _client(**settings_of_session: Any) -> Any:
    import aiohttp

    connector = aiohttp.TCPConnector(socket_factory=_socket)
    return aiohttp.ClientSession(connector=connector, **settings_of_session)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, place = address
    _require_allowed(str(place[0]), str(place[0]))
    return socket.socket(family, kind, protocol)


def _require_allowed(text: str, shown: str) -> None:
    address = ipaddress.ip_address(text.partition("%")[0])
    _, networks = allowed_private(settings().api_dataset_networks)
    if not is_public(address) and not is_in(address, networks):
        raise _refused(shown, "data is not fetched from a private address")


def _refused(url: str, what: str) -> InputError:
    return InputError(what, where=url, remedy="give a URL that the internet can reach")

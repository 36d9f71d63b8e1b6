"""Where a notification may go: no address inside the house, unless a setting names it.

Whoever may set a webhook's URL could otherwise have us speak to services that trust this machine:
the cloud's metadata service, databases, the broker. Names are not trusted: what counts is the
address that is connected to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from models.errors import InputError
from models.settings import settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LONGEST_URL = 2_000


def require_webhook_url(url: str) -> SplitResult:
    """The parts of a URL that a webhook may have. Raises InputError, which never shows the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("this is no URL") from None
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise _refused(f"a URL has at most {_LONGEST_URL} printable ASCII characters, no spaces")
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise _refused("a webhook's URL begins with https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("user and password do not belong into a webhook's URL: it is signed")
    if parts.scheme == "http" and not settings().notify_allow_http:
        raise _refused("http:// is not encrypted, and CELORA_NOTIFY_ALLOW_HTTP is not set")
    try:
        literal = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return parts
    if not may_reach(literal, parts.hostname):
        raise _refused(f"{literal} is a private address")
    return parts


def may_reach(address: Address, host: str) -> bool:
    """Whether a notification to `host` may connect to `address`, which it resolves to."""
    names, networks = allowed_private(settings().notify_private_hosts)
    return is_public(address) or host.lower() in names or is_in(address, networks)


def is_public(address: Address) -> bool:
    """Not for an address that stands for a private one either, in any of IPv6's wrappings."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(one) for one in inner if one is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast and not address.is_reserved


def allowed_private(
    text: str,
) -> tuple[frozenset[str], tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]]:
    """Names and networks of CELORA_NOTIFY_PRIVATE_HOSTS."""
    names, networks = set(), []
    for part in (one.strip().lower() for one in text.split(",")):
        try:
            networks.append(ipaddress.ip_network(part, strict=False))
        except ValueError:
            names.add(part)
    return frozenset(names - {""}), tuple(networks)


def is_in(
    address: Address, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    return any(address in network for network in networks)


def _refused(what: str) -> InputError:
    return InputError(
        what,
        where="webhook",
        remedy="give an https:// URL that the internet can reach; "
        "CELORA_NOTIFY_PRIVATE_HOSTS names hosts of your own",
    )

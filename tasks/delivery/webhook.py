"""One try to deliver a signed webhook (Standard Webhooks).

The name is resolved once, each address it leads to is looked at, and one of those is connected to:
a name that changes its mind in between leads nowhere else. No redirect is followed, no proxy asked,
and nothing is read of an answer but its status.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from models.errors import InputError, SetupError
from models.reach import Address, may_reach, require_webhook_url
from models.settings import settings
from tasks.delivery.answer import Answer

if TYPE_CHECKING:
    import httpx

# They log every URL, and a webhook's path may be a secret.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

_MOST_ADDRESSES = 3
_LONGEST_PAUSE_SECONDS = 6 * 3600.0
_GONE = 410


async def send(url: str, secret: str, message_id: str, body: str) -> Answer:
    """Raises SetupError where a library is missing."""
    library = _libraries()
    try:
        async with asyncio.timeout(settings().notify_timeout_seconds):
            parts = require_webhook_url(url)
            addresses = await _resolved(parts)
            return await _post(library, parts, addresses, _signed(secret, message_id, body), body)
    except InputError as error:
        return Answer(error.what)
    except TimeoutError:
        return Answer(f"no answer within {settings().notify_timeout_seconds:g} s")
    except _Refused as error:
        return Answer(str(error))


class _Refused(Exception):  # noqa: N818 (its message is a cause)
    pass


async def _resolved(parts: SplitResult) -> list[Address]:
    host = parts.hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
    except OSError:
        raise _Refused("its host's name is not known") from None
    # An address with a scope ("%eth0") is a link-local one.
    addresses = [ipaddress.ip_address(str(one[4][0])) for one in found]
    if not addresses or not all(may_reach(address, host) for address in addresses):
        raise _Refused(
            "it leads to a private address that CELORA_NOTIFY_PRIVATE_HOSTS does not name"
        )
    return list(dict.fromkeys(addresses))[:_MOST_ADDRESSES]


async def _post(
    library: Any, parts: SplitResult, addresses: list[Address], headers: dict[str, str], body: str
) -> Answer:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = f":{parts.port}" if parts.port else ""
    headers = {
        **headers,
        "host": parts.netloc,
        "content-type": "application/json",
        "user-agent": "Celora",
    }
    failure: Exception | None = None
    seconds = settings().notify_timeout_seconds
    async with library.AsyncClient(
        verify=_tls(), trust_env=False, follow_redirects=False, timeout=seconds
    ) as client:
        for address in addresses:
            literal = f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004
            try:
                async with client.stream(
                    "POST",
                    f"{parts.scheme}://{literal}{port}{path}",
                    content=body.encode(),
                    headers=headers,
                    extensions={"sni_hostname": parts.hostname},
                ) as response:
                    return _answer(response)
            except (library.ConnectError, library.ConnectTimeout) as error:
                failure = error
            except library.HTTPError as error:
                return Answer(_CAUSES.get(type(error).__name__, "it did not answer as HTTP asks"))
    return Answer(_not_connected(failure))


def _answer(response: httpx.Response) -> Answer:
    status = response.status_code
    if response.is_success:
        return Answer(status=status)
    if response.is_redirect:
        return Answer("it redirects elsewhere, which is not followed", status)
    if status == _GONE:
        return Answer("it says that it is gone", status, give_up=True)
    asked = response.headers.get("retry-after", "")
    pause = min(float(asked), _LONGEST_PAUSE_SECONDS) if asked.isdecimal() else None
    return Answer(f"it answered {status}", status, retry_after=pause)


def _not_connected(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return "its certificate is not valid"
        if isinstance(error, ssl.SSLError):
            return "no encrypted connection came about"
        error = error.__cause__ or error.__context__
    return "nobody answers there"


_CAUSES = {
    "ReadTimeout": "no answer came",
    "WriteTimeout": "no answer came",
    "ReadError": "the connection broke",
    "WriteError": "the connection broke",
    "RemoteProtocolError": "the connection was closed without an answer",
}


def _signed(secret: str, message_id: str, body: str) -> dict[str, str]:
    from standardwebhooks import Webhook

    now = datetime.now(UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()  # the system's, or SSL_CERT_FILE's
    context.load_verify_locations(certifi.where())
    return context


def _libraries() -> Any:
    try:
        import httpx
        import standardwebhooks  # noqa: F401 (asked for before anything is sent)
    except ImportError as error:
        raise SetupError(
            f"webhooks cannot be sent: {error.name} is not installed",
            remedy="pip install 'celora[notify]' where the dispatcher runs",
        ) from None
    return httpx

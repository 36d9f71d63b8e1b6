"""How long a hub is waited for, and whether it gave no answer (so that asking later may help)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

# By name: the clients let their HTTP library's exceptions through, and which library that is
# differs from client to client and from version to version.
_NO_ANSWER = frozenset(
    {
        "TransportError",  # httpx: refused, reset, timed out
        "ConnectionError",  # requests, and Python's own
        "EndpointConnectionError",  # botocore
        "HTTPClientError",  # botocore: time-outs
        "ClientConnectionError",  # aiohttp
    }
)
_TRY_LATER = frozenset({408, 425, 429})


def is_away(error: BaseException) -> bool:
    """True for a refused connection, a time-out, a server that is down or overloaded.

    False for every answer in earnest (not found, no access), and where this machine is told to
    ask no hub at all (HF_HUB_OFFLINE).
    """
    for one in _chain(error):
        names = {kind.__name__ for kind in type(one).__mro__}
        if "OfflineModeIsEnabled" in names:
            return False
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status >= 500 or status in _TRY_LATER  # noqa: PLR2004 (HTTP: the server's fault)
        if isinstance(one, TimeoutError) or names & _NO_ANSWER:
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first."""
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


@cache
def limit_waits() -> None:
    """Let the hub's client wait HF_HUB_DOWNLOAD_TIMEOUT for an answer; its own default is for ever.

    A hub behind a line that swallows packets would hold an attempt, and its GPU, until the job's
    time is over.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT  # between two bytes, not for a whole file

    def limit(request: Any) -> None:
        # Here, and not as the client's own time-out: most calls name None, which overrules it.
        asked = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            wait: asked.get(wait) or seconds for wait in ("connect", "read", "write", "pool")
        }

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    set_client_factory(client)

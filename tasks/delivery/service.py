"""One try to deliver a message to a service that Apprise knows, by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from models.errors import InputError, SetupError
from models.notices import Notice
from models.settings import settings
from tasks.delivery.answer import Answer

_START_SECONDS = 10.0  # for the process to load Apprise on a busy machine
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
_TYPES = {
    Notice.COMPLETED: "success",
    Notice.FAILED: "failure",
    Notice.WAITING: "warning",
    Notice.BUDGET: "warning",
}


async def send(url: str, notice: Notice, title: str, body: str) -> Answer:
    """Raises SetupError where the library is missing."""
    kind = _TYPES.get(notice, "info")
    found = await _ask({"url": url, "title": title, "body": body, "type": kind})
    return Answer(found.get("cause"), found.get("status"))


def require_service_url(url: str) -> str:
    """What may be shown of a URL that Apprise understands and the settings allow.

    Raises InputError, which never shows the URL; SetupError.
    """
    found = asyncio.run(_ask({"url": url}))
    if found.get("cause"):
        raise InputError(
            found["cause"],
            where="apprise",
            remedy="see the services that are allowed in docs/notifications.md, "
            "and Apprise's own pages for how their URLs are written",
        )
    return str(found["shown"])


async def _ask(order: dict[str, Any]) -> dict[str, Any]:
    seconds = settings().notify_timeout_seconds + _START_SECONDS
    services = [one.strip() for one in settings().notify_services.lower().split(",")]
    order |= {
        "services": services,
        "private_hosts": settings().notify_private_hosts,
        "seconds": seconds,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tasks.delivery.apprise_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate(json.dumps(order).encode())
    except TimeoutError:
        return {"cause": f"it was not done within {settings().notify_timeout_seconds:g} s"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        return {"cause": "the sending process ended without an answer"}
    if found.get("setup"):
        raise SetupError(
            f"{found['cause']}", remedy="pip install 'celora[notify]' where the dispatcher runs"
        )
    return found

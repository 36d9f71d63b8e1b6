"""`python -m tasks.delivery.apprise_child`: one message through Apprise, in a process of its own.

Apprise's hundred services are code that goes where a tenant's URL says, waits as long as it likes,
and may read files. So each message has a process without any secret in its environment, which is
ended when its time is up, behind a fence (see guard.py). The order comes on standard input, the
answer goes to standard output; neither is in an argument that others can see.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from typing import Any

from tasks.delivery.guard import guard

_ERROR = re.compile(r"error=(\d{3})\b")


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """`order`: url, services, private_hosts, and for a message to send title, body and type.

    Without a body the URL is only looked at.
    """
    try:
        import apprise
    except ImportError:
        return {"cause": "the Apprise library is not installed", "setup": True}
    told = _Told()
    logger = logging.getLogger("apprise")
    logger.addHandler(told)
    logger.propagate = False  # its lines may hold parts of the URL
    refused = guard(order["private_hosts"])
    plugin, schema = _plugin(apprise, order["url"], order["services"])
    if plugin is None:
        return {"cause": refused[0] if refused else _why_not(schema, order["services"])}
    if "body" not in order:
        return {"shown": f"{schema}:// ({plugin.service_name})"}
    # The URL may ask otherwise.
    plugin.redirects, plugin.verify_certificate = False, True
    if plugin.notify(title=order["title"], body=order["body"], notify_type=order["type"]):
        return {}
    cause = (
        f"{plugin.service_name} answered {told.status}"
        if told.status
        else "it was not reached, or did not take it"
    )
    return {"cause": refused[0] if refused else cause, "status": told.status}


def _plugin(apprise: Any, url: str, services: list[str]) -> tuple[Any, str | None]:
    """The plugin for a URL, and its scheme: that which an address of Slack's, say, stands for."""
    parts = apprise.plugins.url_to_dict(url)
    schema = (parts or {}).get("schema")
    if schema not in services:
        return None, schema
    asset = apprise.AppriseAsset(
        app_id="Celora",
        app_desc="Celora",
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        http_redirects=False,
        secure_logging=True,
        allow_templates=False,
        pgp_autogen=False,
        pem_autogen=False,
    )
    return apprise.Apprise.instantiate(parts, asset=asset), schema


def _why_not(schema: str | None, services: list[str]) -> str:
    if schema is None:
        return "Apprise does not understand this URL"
    if schema not in services:
        return f"service {schema}:// is not among CELORA_NOTIFY_SERVICES"
    return f"this is no URL of service {schema}://"


class _Told(logging.Handler):
    """Of all that Apprise logs, the last HTTP status."""

    status: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if found := _ERROR.search(record.getMessage()):
            self.status = int(found[1])


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a plugin prints is no answer
    order = json.load(sys.stdin)
    signal.alarm(int(order["seconds"]) + 1)  # also where whoever started us is gone
    answers.write(json.dumps(answer(order)))


if __name__ == "__main__":
    main()

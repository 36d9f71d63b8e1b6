"""From CELORA_BROKER_URL to what kombu wants: RabbitMQ, or a folder that serves as a broker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from models.settings import settings
from tasks import folder_transport
from tasks.names import CPU_QUEUES

FOLDER_SCHEME = "filesystem://"
TLS_SCHEME = "amqps://"

# Exchanges that carry a table of queues: kombu truncates a table before it locks it, when it makes
# it, so a second worker that starts at the same moment would wipe the first one's row.
_TABLES = ("celery", *CPU_QUEUES, "celery.pidbox", "reply.celery.pidbox", "celeryev")


def broker_settings(url: str) -> dict[str, Any]:
    """Celery's broker settings for `url`. A folder is made, with its parts, for this user alone."""
    if url.startswith(FOLDER_SCHEME):
        folder = Path(url.removeprefix(FOLDER_SCHEME)).expanduser().absolute()
        folder_transport.install()
        # A host, which a folder has not: without one kombu warns at every connection.
        url = f"{FOLDER_SCHEME}localhost//"
        return {"broker_url": url, "broker_transport_options": _in_folder(folder)}
    return {
        "broker_url": url,
        "broker_use_ssl": tls_options(url),
        "broker_transport_options": {
            "confirm_publish": True,  # else a message that the broker refuses is lost unnoticed
            # Seconds that a silent broker may hold up a publish, and what opens a channel for it.
            "read_timeout": 5,
            "write_timeout": 5,
        },
        # The server's own 60 s caps it. Only the main process's connection sends heartbeats; a
        # broker that is silent for two of them is connected to anew.
        "broker_heartbeat": 30,
        # Replies go where the caller asks for them (`reply_to`); nothing is kept in the broker.
        # Only `celora.submit` has a result.
        "result_backend": "rpc://",
    }


def tls_options(url: str) -> dict[str, Any] | Literal[False]:
    """kombu's `ssl` for `url`: the certificate and the name in it are checked for amqps://.

    Without these kombu would encrypt, and trust anybody.
    """
    if not url.startswith(TLS_SCHEME):
        return False
    return {
        "context": {"cafile": settings().broker_ca or None, "check_hostname": True},
        "server_hostname": None,  # kombu puts the URL's host here
    }


# For a worker's main process, which consumes and sends Flower's events. It would wait for a
# confirmation in its event loop: a silent broker would stop that for ever, and with it the pool
# (tried: a child could not even hand back its result). Lost events harm nobody.
MAIN_PROCESS_OPTIONS = {"confirm_publish": False, "read_timeout": 30, "write_timeout": 30}


def _in_folder(folder: Path) -> dict[str, Any]:
    messages, control, processed = (folder / part for part in ("messages", "control", "processed"))
    for part in (messages, control, processed):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in _TABLES:
        _make_table(control / f"{name}.exchange")
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),  # one folder: what one process puts, another gets
        "control_folder": str(control),
        "processed_folder": str(processed),
        "store_processed": False,  # nobody reads what was processed, and it would grow for ever
        # Seconds between two looks into the folder. The default costs a second a stage; at 0.05 an
        # idle worker takes 0.35 % of a core (at 0.02: 0.9 %).
        "polling_interval": 0.05,
    }


def _make_table(path: Path) -> None:
    """An empty table, whole from its first moment on, unless there is one."""
    if path.exists():
        return
    whole = path.with_name(f"{path.name}.{os.getpid()}")
    whole.write_text("[]")
    try:
        path.hardlink_to(whole)
    except FileExistsError:
        pass  # another process was quicker
    finally:
        whole.unlink()

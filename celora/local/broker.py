"""Housekeeping of the folder that serves as broker (kombu's `filesystem://`).

It has no expiry: what a dead reader never fetches stays for ever. Tickets may go at any time, for
the dispatcher publishes them again; a `celora.submit` from another app must not.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

# Queues that belong to one reader: Flower's events, answers and commands of `celery inspect`.
_PRIVATE = ("celeryev.", ".pidbox")
UNREAD_SECONDS = 120.0


def prune_at_start(folder: Path) -> None:
    """Before any worker runs: tickets to GPUs are stale, and nobody reads the private queues."""
    for path in _messages(folder):
        queue = _queue(path)
        if queue.startswith("celora.gpu.") or _is_private(queue):
            path.unlink(missing_ok=True)
    for path in folder.rglob("*.part"):  # its writer was killed
        path.unlink(missing_ok=True)
    prune(folder)


def prune(folder: Path) -> None:
    """While it runs: drop private queues whose reader is gone, with their bindings.

    A queue with a message that nobody fetched for two minutes has no reader.
    """
    now = time.time()
    unread: dict[str, list[Path]] = defaultdict(list)
    dead: set[str] = set()
    for path in _messages(folder):
        queue = _queue(path)
        if _is_private(queue):
            unread[queue].append(path)
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > UNREAD_SECONDS:
                    dead.add(queue)
    for queue in dead:
        for path in unread[queue]:
            path.unlink(missing_ok=True)
    if dead:
        for table in folder.rglob("*.exchange"):
            _unbind(table, dead)
    for path in folder.rglob("processed/*.msg"):
        path.unlink(missing_ok=True)


def _messages(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.msg") if path.parent.name != "processed"]


def _queue(path: Path) -> str:
    # kombu: "<milliseconds>_<uuid>.<queue>.msg"
    return path.name.partition(".")[2].removesuffix(".msg")


def _is_private(queue: str) -> bool:
    return queue.startswith(_PRIVATE[0]) or queue.endswith(_PRIVATE[1])


def _unbind(table: Path, queues: set[str]) -> None:
    """Take queues out of an exchange's table, under the lock that kombu takes."""
    with suppress(FileNotFoundError), table.open("r+b", buffering=0) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        rows = json.loads(handle.read() or b"[]")
        kept = [row for row in rows if row[-1] not in queues]
        if len(kept) != len(rows):
            handle.seek(0)
            handle.write(json.dumps(kept).encode())
            handle.truncate()
            os.fsync(handle.fileno())

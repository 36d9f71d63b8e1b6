"""Ending processes for good: a whole session, or whoever keeps a file open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_LOOK_SECONDS = 0.02


def end_session(session: int, *, seconds: float) -> bool:
    """SIGKILL every process of a session, and wait until it is empty. False: some still live.

    The leader's number stays taken while a member lives, or while the leader is not reaped: call
    this only before the leader is reaped or with a member known alive.
    """
    return _end(lambda: session_members(session), seconds)


def end_holders(path: Path, *, seconds: float) -> bool:
    """SIGKILL every process that has `path` open, but for this one. False: some still live."""
    return _end(lambda: holders(path), seconds)


def session_members(session: int) -> list[int]:
    """Living processes of a session; a zombie is not living."""
    members = []
    for pid in _pids():
        with suppress(OSError):
            if os.getsid(pid) != session:  # to read every process's file costs milliseconds
                continue
            # "pid (name) state …"; a name may hold spaces and brackets.
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                members.append(pid)
    return members


def holders(path: Path) -> list[int]:
    """Processes of ours, but for this one, that have `path` open."""
    target = path.resolve()
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        # Another user's process shows us no descriptors; its file may go while we look.
        with suppress(OSError):
            links = (link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir())
            if any(link == target for link in links):
                found.append(pid)
    return found


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _end(living: Callable[[], list[int]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pids := living():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True

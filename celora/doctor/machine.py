"""Python, memory, disk and clock."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator

from celora.doctor.check import Check, Verdict, can_write, nearest
from models import store
from models.errors import UnavailableError
from models.settings import settings

_OLDEST_PYTHON = (3, 11)
_GB = 10**9
_TIGHT_DISK_BYTES = 20 * _GB  # a 7B base model and a few checkpoints
_FULL_DISK_BYTES = 1 * _GB
_CLOCK_SECONDS = 2.0


def python() -> Iterator[Check]:
    import psutil

    version = platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        yield Check("python", Verdict.FAIL, version, "use Python 3.11 or newer")
    else:
        yield Check("python", Verdict.OK, f"{version} ({sys.executable})")
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    said = f"{cores} cores, {memory.total / _GB:.0f} GB memory, {memory.available / _GB:.0f} free"
    yield Check("machine", Verdict.OK, f"{platform.system()} {platform.machine()}, {said}")


def disk() -> Iterator[Check]:
    places = {"home": settings().at_home()}
    if store.is_local(settings().artifacts_url):
        places["artifacts"] = store.local_path(settings().artifacts_url)
    seen: set[int] = set()
    for what, place in places.items():
        there = nearest(place)
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        said = f"{free / _GB:.1f} GB free for {what} ({place})"
        if not can_write(there):
            yield Check(
                "disk", Verdict.FAIL, f"{there} may not be written", "set CELORA_HOME elsewhere"
            )
        elif free < _FULL_DISK_BYTES:
            yield Check("disk", Verdict.FAIL, said, "free some, or set CELORA_HOME elsewhere")
        elif free < _TIGHT_DISK_BYTES:
            yield Check(
                "disk",
                Verdict.WARN,
                said,
                "large base models and their checkpoints need more; "
                "CELORA_HOME and CELORA_ARTIFACTS say where they go",
            )
        else:
            yield Check("disk", Verdict.OK, said)


def clock() -> Iterator[Check]:
    """Leases go by the database's clock alone, but people compare times in logs."""
    from models.queries.clock import database_time
    from models.session import transaction

    try:
        with transaction() as session:
            before = time.time()
            there = database_time(session).timestamp()
            after = time.time()
    except UnavailableError:
        return  # the database's own check tells
    # The database looked at its clock at some moment between the two looks at ours.
    away = max(0.0, before - there, there - after)
    if away > _CLOCK_SECONDS:
        yield Check(
            "clock",
            Verdict.WARN,
            f"{away:.1f} s apart from the database's",
            "set this machine's clock by NTP (chrony or systemd-timesyncd)",
        )
    else:
        yield Check("clock", Verdict.OK, "agrees with the database's")

"""Names for what a test run makes on shared servers, so that a later run knows what was left over.

A name carries the run's host, process and start: when that process is gone (killed, most likely),
what bears its name may be dropped. Nothing else on a server is ever touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil

_NAME = re.compile(r"celora_test_([0-9a-f]{8})_(\d+)_(\d+)(?:_.*)?")


def _here() -> str:
    """This host, and in it this process namespace: elsewhere a pid means another process."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def run_name(*parts: str) -> str:
    """A name of this run: lower-case letters, digits and underscores only."""
    started = int(psutil.Process().create_time())
    return "_".join(("celora_test", _here(), str(os.getpid()), str(started), *parts))


def is_left_over(name: str) -> bool:
    """Whether `name` was made on this host by a test run that is no more."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] != _here():
        return False
    try:
        return int(psutil.Process(int(match[2])).create_time()) != int(match[3])
    except psutil.NoSuchProcess:
        return True

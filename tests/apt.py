"""Programs that tests need and a bare Debian lacks: installed with apt, where we are root."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import SetupError

_POLICY = Path("/usr/sbin/policy-rc.d")
_TAIL = 600


def install(package: str, *, remedy: str) -> str:
    """What apt said last. No service of the package is started. Raises SetupError without apt."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(
            f"{package} is not installed, and cannot be installed here (that takes root and apt)",
            remedy=remedy,
        )
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _alone(), _no_service_start():
        for command in (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
        ):
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
    return done.stdout[-_TAIL:]


@contextmanager
def _alone() -> Iterator[None]:
    """Two processes that run tests would both install; apt lets only one."""
    with (Path(tempfile.gettempdir()) / "celora_test_install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_service_start() -> Iterator[None]:
    """Keep the package from starting its service, which would listen on all interfaces."""
    if _POLICY.exists():  # set up already (containers have it): not ours to change
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()

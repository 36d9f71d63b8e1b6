"""Commands as an ordinary user runs them, also where root runs the tests."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from celora.local.binaries import _wheel_folder

NOBODY = 65534


def as_ordinary_user(command: list[str], *owned: Path) -> list[str]:
    """The command line that runs `command` as `nobody`, who is made owner of `owned`.

    It keeps the one right to read files, for a Python that lies below root's home. The programs of
    PostgreSQL need more than that: the test is skipped where their folder is closed to others.
    """
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not here to become an ordinary user")
    programs = _wheel_folder().resolve()
    for folder in (programs, *programs.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"{folder} is closed to ordinary users, and the programs lie below it")
    for path in owned:
        os.chown(path, NOBODY, NOBODY)
    return [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", *command,
    ]  # fmt: skip

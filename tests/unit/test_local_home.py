"""One `celora up` on one home, and what a killed one left behind is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from celora.local.home import HomeLock
from models.errors import SetupError


def ignore(_line: str) -> None:
    pass


def test_a_second_owner_is_refused_with_the_firsts_number(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path), HomeLock(tmp_path)
    first.acquire(patience_seconds=0, say=ignore)
    with pytest.raises(SetupError, match=str(os.getpid())):
        second.acquire(patience_seconds=0, say=ignore)
    assert not second.held
    first.release()
    second.acquire(patience_seconds=0, say=ignore)
    second.release()


def leave_a_child(home: Path, seconds: float) -> int:
    """An owner that ends at once, and a child of its that holds the lock for `seconds`."""
    program = (
        "import subprocess, sys; from pathlib import Path\n"
        "from celora.local.home import HomeLock\n"
        "lock = HomeLock(Path(sys.argv[1])); lock.acquire(patience_seconds=0, say=print)\n"
        "child = subprocess.Popen(['sleep', sys.argv[2]], pass_fds=(lock.descriptor,),\n"
        "                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(home), str(seconds)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_children_of_a_killed_owner_are_waited_for(tmp_path: Path) -> None:
    leave_a_child(tmp_path, 0.5)
    told: list[str] = []
    lock = HomeLock(tmp_path)
    began = time.monotonic()
    lock.acquire(patience_seconds=60, say=told.append)
    assert time.monotonic() - began < 30
    assert len(told) <= 1  # none when the child had left by then
    lock.release()


def test_children_that_do_not_leave_are_killed(tmp_path: Path) -> None:
    child = leave_a_child(tmp_path, 600)
    told: list[str] = []
    lock = HomeLock(tmp_path)
    lock.acquire(patience_seconds=0.2, say=told.append)
    assert len(told) == 1
    assert (
        not Path(f"/proc/{child}/cmdline").exists()
        or not Path(f"/proc/{child}/cmdline").read_bytes()
    )  # gone, or a zombie that nobody has reaped
    lock.release()


def test_a_number_that_is_another_process_by_now_is_no_owner(tmp_path: Path) -> None:
    child = leave_a_child(tmp_path, 600)
    (tmp_path / "up.lock").write_text(f"{os.getpid()} 1.0\n")  # started long before us
    lock = HomeLock(tmp_path)
    thread = threading.Timer(0.3, lambda: os.kill(child, 9))
    thread.start()
    lock.acquire(patience_seconds=60, say=ignore)
    thread.join()
    lock.release()


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written") as caught:
        HomeLock(tmp_path / "file" / "home").acquire(patience_seconds=0, say=ignore)
    assert "CELORA_HOME" in str(caught.value.remedy)

"""The main process of a GPU's worker takes its device, or says who has it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_worker import locks
from gpu_worker.devices import Device
from models.errors import SetupError
from tasks.mainprocess import MainProcess
from tests.environment import variables


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with variables(CELORA_HOME=str(tmp_path)):
        yield Device(index=0, uuid="cpu-here-0", kind="cpu", model="cpu", memory_bytes=1)


def test_what_a_killed_worker_left_is_waited_for(device: Device) -> None:
    """Its pool child holds the lock until it is dead: no reason to give the device up."""
    left = locks.take(locks.worker_lock(device))
    assert left is not None
    threading.Timer(0.5, os.close, [left]).start()
    MainProcess("gpu0@here", device).begin()
    assert locks.noted(locks.worker_lock(device)) == f"gpu0@here (pid {os.getpid()})\n"


def test_a_device_in_other_hands_is_refused(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    held = locks.take(locks.worker_lock(device))
    assert held is not None
    locks.note(held, "gpu0@other (pid 1)\n")
    with pytest.raises(SystemExit) as refused:
        MainProcess("gpu0@here", device).begin()
    assert refused.value.code == SetupError.exit_code
    assert "is served already by gpu0@other (pid 1)" in capsys.readouterr().err
    os.close(held)

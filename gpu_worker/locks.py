"""File locks that keep one worker and one live trainer to a device.

A lock is an open descriptor: the kernel frees it when its last holder is gone, however it went.
The trainer inherits its device's lock, and so do the processes it forks (data loaders).
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from gpu_worker.devices import Device
from models.errors import SetupError
from models.settings import settings


def lock_folder(device: Device) -> Path:
    """Where the device's locks lie: one folder a machine, as a CUDA device is one a machine.

    A CPU slot is nobody's but its installation's, so its locks lie in that installation's home:
    a demo beside a running stack is no clash.
    """
    if device.kind == "cpu":
        folder = settings().at_home("locks")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    if settings().lock_folder:
        folder = Path(settings().lock_folder)
    else:
        shared = Path("/run/lock")
        usable = shared.is_dir() and os.access(shared, os.W_OK)
        folder = (shared if usable else Path(tempfile.gettempdir())) / "celora"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)  # several users may train on one machine
    return folder


def worker_lock(device: Device) -> Path:
    """Held by the device's Celery worker, as long as it lives."""
    return lock_folder(device) / f"{device.uuid}.worker"


def trainer_lock(device: Device) -> Path:
    """Held by the worker's pool child and by every process of the trainer's session."""
    return lock_folder(device) / f"{device.uuid}.trainer"


def take(path: Path) -> int | None:
    """Lock `path`; the descriptor that holds the lock, or None when somebody else holds it."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def note(descriptor: int, text: str) -> None:
    """Write down who holds the lock, for people and for `noted`; a full disk is no obstacle."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def noted(path: Path) -> str:
    """What the holder of `path` last wrote down; empty when it wrote nothing."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _open(path: Path) -> int:
    # The folder may be open to every user: follow no link that one of them planted. Linux refuses
    # O_CREAT on another user's file in such a folder (fs.protected_regular), so try without first.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = os.open(path, flags | os.O_CREAT, 0o666)
            os.fchmod(descriptor, 0o666)  # whatever the umask: the next user must open it too
    except OSError as error:
        raise SetupError(
            f"the device lock cannot be opened: {error.strerror}",
            where=str(path),
            remedy="set CELORA_LOCK_FOLDER to a folder that every worker of this machine can write",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SetupError("the device lock is not a plain file", where=str(path))
    return descriptor

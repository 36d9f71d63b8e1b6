"""One `celora up` at a time on one home; and no process of an earlier one beside it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

import psutil

from gpu_worker.processes import end_holders
from models.errors import SetupError


class HomeLock:
    """An flock on `up.lock`, which also every child holds.

    So it is free only when the owner *and* all it started have left: after a kill -9 of the owner
    its workers still write their checkpoints, and the next `celora up` waits for that.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "up.lock"
        self._file: TextIOWrapper | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    @property
    def descriptor(self) -> int:
        """To be passed to children."""
        if self._file is None:
            raise RuntimeError("not locked")
        return self._file.fileno()

    def acquire(self, *, patience_seconds: float, say: Callable[[str], None]) -> None:
        """Raises SetupError when another `celora up` has this home.

        What a killed one left behind gets `patience_seconds` to leave, then it is killed.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = self.path.open("a+")
        except OSError as error:
            raise SetupError(
                f"Celora's home cannot be written: {error.strerror}",
                where=str(self.path.parent),
                remedy="set CELORA_HOME (the demo: --home) to a folder of your own",
            ) from None
        deadline = time.monotonic() + patience_seconds
        told = False
        while not _try_lock(handle):
            owner = self._owner()
            if owner is not None:
                handle.close()
                raise SetupError(
                    f"`celora up` runs already on this home (process {owner})",
                    where=str(self.path.parent),
                    remedy="use that one, stop it with Ctrl-C, or set another CELORA_HOME",
                )
            if not told:
                say("waiting for the processes of a killed `celora up` to write their checkpoints")
                told = True
            if time.monotonic() > deadline:
                end_holders(self.path, seconds=10)
            time.sleep(0.1)
        handle.truncate(0)
        me = psutil.Process()
        handle.write(f"{me.pid} {me.create_time()}\n")
        handle.flush()
        self._file = handle

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _owner(self) -> int | None:
        """The living owner's pid; the start time tells a reused number."""
        try:
            pid, started = self.path.read_text().split()
            process = psutil.Process(int(pid))
            same = abs(process.create_time() - float(started)) < 1
        except (OSError, ValueError, psutil.Error):
            return None
        return process.pid if same and process.status() != psutil.STATUS_ZOMBIE else None


def _try_lock(handle: TextIOWrapper) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

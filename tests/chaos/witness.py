"""`python -m tests.chaos.witness FOLDER OUT`: writes down when which trainer lived on which GPU.

It knows nothing of the product but the name of a trainer's program, and that a trainer keeps its
GPU's lock file in FOLDER open. Start and end are on the boot clock: the start is the kernel's, and
the end is told by a pidfd, so both hold however late the witness looks.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_LOOK_SECONDS = 0.05
_UNDECIDED_SECONDS = 3.0  # a process may be seen between fork and exec: look again until then
_TICKS = os.sysconf("SC_CLK_TCK")
_PROGRAMS = (b"gpu_worker.scripted", b"gpu_worker.trainer")


@dataclass(frozen=True)
class Life:
    gpu: str
    pid: int
    session: int
    began: float


def boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Witness:
    def __init__(self, folder: Path, out: Path) -> None:
        self._folder = folder.resolve()
        self._out = out.open("w", buffering=1)
        self._selector = selectors.DefaultSelector()
        self._first_seen: dict[int, float] = {}  # processes that are no trainers, or not yet
        self._living: dict[int, Life] = {}
        self.over = False

    def run(self) -> None:
        while not self.over:
            self._look_for_new()
            for key, _ in self._selector.select(_LOOK_SECONDS):
                self._selector.unregister(key.fd)
                os.close(key.fd)
                self._write(self._living.pop(key.data), boot_time())
        for life in self._living.values():
            self._write(life, None)

    def _look_for_new(self) -> None:
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 (many times a second)
        self._first_seen = {pid: at for pid, at in self._first_seen.items() if pid in pids}
        for pid in pids - self._living.keys():
            if boot_time() - self._first_seen.setdefault(pid, boot_time()) < _UNDECIDED_SECONDS:
                with suppress(OSError):
                    self._take(pid)

    def _take(self, pid: int) -> None:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not any(program in command for program in _PROGRAMS):
            return
        death = os.pidfd_open(pid)
        links = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
        held = [Path(link) for link in links if link.endswith(".trainer")]
        mine = next((path for path in held if path.parent == self._folder), None)
        if mine is None:
            os.close(death)
            return
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self._living[pid] = Life(mine.stem, pid, int(fields[3]), int(fields[19]) / _TICKS)
        self._selector.register(death, selectors.EVENT_READ, pid)

    def _write(self, life: Life, ended: float | None) -> None:
        self._out.write(json.dumps(vars(life) | {"ended": ended}) + "\n")


def main() -> None:
    witness = Witness(Path(sys.argv[1]), Path(sys.argv[2]))

    def stop(_number: int, _frame: FrameType | None) -> None:
        witness.over = True

    signal.signal(signal.SIGTERM, stop)
    witness.run()


if __name__ == "__main__":
    main()

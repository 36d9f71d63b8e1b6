"""`python -m gpu_worker.tether PARENT SIGNAL MODULE …`: run a module that dies with its parent.

The kernel sends SIGNAL when the *thread* that started us ends (prctl(2), PR_SET_PDEATHSIG), so
only a main thread may start a tethered process. The parent may have died before we asked for
that: hence the look at our parent's pid after it. It is done here, in the new process, because
code between fork and exec in a process with threads may hang for ever on a lock.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

CORES_VARIABLE = "CELORA_CORES"  # comma-separated; the module and its threads run on these alone

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str, death_signal: int = signal.SIGKILL) -> list[str]:
    """The command line that runs `module` tethered to this process."""
    tether = [sys.executable, "-m", "gpu_worker.tether", str(os.getpid()), str(int(death_signal))]
    return [*tether, module, *arguments]


def main() -> None:
    parent, death_signal, module = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    if cores := os.environ.get(CORES_VARIABLE):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    sys.argv[:] = [module, *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

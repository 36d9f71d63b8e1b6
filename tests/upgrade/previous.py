"""The previous release, from its wheel: unpacked, and run on this environment's dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

(WHEEL,) = Path(__file__).parent.glob("celora-*.whl")


@dataclass(frozen=True, slots=True)
class Previous:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes a Python process import the previous release, and its children too."""
        return {"PYTHONPATH": str(self.folder)}

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        """A program on the previous release, to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | environment | self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def unpack(folder: Path) -> Previous:
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return Previous(folder)

"""One finding of the doctor."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, but not all of it or not well
    FAIL = "fail"  # broken: jobs will not run


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    said: str
    remedy: str | None = None


def nearest(path: Path) -> Path:
    """The folder itself, or the closest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def can_write(folder: Path) -> bool:
    """By writing: root may write everywhere, and yet not to a read-only file system."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return True
    except OSError:
        return False

"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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

"""A length of time as people say it."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Two units at most: "45 s", "2 min 5 s", "3 h 12 min", "2 d 4 h"."""
    whole = max(0, round(seconds))
    for size, big, small_size, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {big}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"

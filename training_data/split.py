"""The part that is held out for evaluation, chosen by what each row says and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_BITS = 64  # the upper half of a fingerprint; the lower half is what duplicates are found by


def held_out(fingerprint: int, fraction: float) -> bool:
    """Whether a row belongs to the held-out part: the same answer in every file and every run."""
    return (fingerprint >> _BITS) < fraction * (1 << _BITS)


def split(rows: Iterable[tuple[Item, int]], fraction: float) -> Iterator[tuple[Item, bool]]:
    """(row, is it held out) for each (row, fingerprint), in order but for one.

    In a file so small that no row falls into the held-out part, the row nearest to it is held
    out: with nothing to compare on, an evaluation says nothing. It is kept back until that shows.
    """
    if fraction <= 0:
        yield from ((row, False) for row, _ in rows)
        return
    nearest: tuple[int, Item] | None = None
    any_held_out = any_trained = False
    for row, fingerprint in rows:
        if held_out(fingerprint, fraction):
            yield row, True
            any_held_out = True
            if nearest is not None:
                yield nearest[1], False
                nearest = None
        elif any_held_out:
            yield row, False
        elif nearest is None:
            nearest = (fingerprint, row)
        else:
            further, nearest = sorted([nearest, (fingerprint, row)], key=_position)[::-1]
            yield further[1], False
            any_trained = True
    if nearest is not None:
        yield nearest[1], any_trained


def _position(pair: tuple[int, Item]) -> int:
    return pair[0]

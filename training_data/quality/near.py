"""Rows that say nearly the same as another, and held-out rows that training gives away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from training_data.quality import shingles
from training_data.quality.buckets import Buckets
from training_data.watch import Watch

ALIKE = 0.8
# Of the first so many rows, and it is said: 5 GB of temporary files, and under 1 GB of memory.
MOST_ROWS = 16_000_000
_LISTED = 5
# What text is common to most rows is learnt from: whichever is reached first.
_FIRST_ROWS, _FIRST_BYTES = 500, 1 << 19
_BATCH_BYTES = 1 << 18
_PARTS, _PROMPT_PARTS = 64, 16
_PAIRS_AT_ONCE = 1 << 14


@dataclass(slots=True)
class Text:
    """What is compared of a row, evened; the prompt is empty where the row is all answer."""

    whole: bytes
    prompt: bytes
    held_out: bool


@dataclass(slots=True)
class Pairs:
    """How many rows have an earlier one like them, and the first few: (row, like, how much)."""

    count: int = 0
    listed: list[tuple[int, int, float]] = field(default_factory=list)

    def add(self, rows: Any, others: Any, measures: Any) -> None:
        self.count += len(rows)
        found = zip(rows.tolist(), others.tolist(), measures.tolist(), strict=True)
        self.listed = sorted([*self.listed, *found])[:_LISTED]


@dataclass(slots=True)
class Compared:
    """What comparing all rows has found. Rows are numbered in the order they were added."""

    alike: float = ALIKE
    rows: int = 0
    too_short: int = 0
    left_out: int = 0
    common_share: float = 0.0
    near: Pairs = field(default_factory=Pairs)
    groups: int = 0
    largest_group: int = 0
    same_prompt: Pairs = field(default_factory=Pairs)
    leaked: Pairs = field(default_factory=Pairs)
    leaked_prompts: Pairs = field(default_factory=Pairs)


class Comparison:
    """Takes rows in batches, and compares them when all are there.

    A row takes 332 bytes on disk (its signature, and a key of each band and of its prompt with its
    number), and 8 in memory at the end.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._watch = watch
        self._stack = ExitStack()
        self._bands = self._stack.enter_context(Buckets(folder / "bands", _PARTS))
        self._prompts = self._stack.enter_context(Buckets(folder / "prompts", _PROMPT_PARTS))
        self._signatures = self._stack.enter_context((folder / "signatures").open("w+b"))
        self._first: list[Text] = []
        self._first_bytes = 0
        self._common: shingles.Common | None = None
        self._held_out: list[Any] = []
        self._found = Compared()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, texts: Sequence[Text]) -> None:
        fitting = texts[: max(0, MOST_ROWS - self._count - len(self._first))]
        self._found.left_out += len(texts) - len(fitting)
        if self._common is not None:
            self._take(fitting)
            return
        self._first += fitting
        self._first_bytes += sum(len(text.whole) for text in fitting)
        if len(self._first) >= _FIRST_ROWS or self._first_bytes >= _FIRST_BYTES:
            self._begin()

    def finish(self) -> Compared:
        """Compare. May take as long as reading did; looks up all the time."""
        if self._common is None:
            self._begin()
        self._signatures.flush()
        held_out = np.concatenate([np.empty(0, np.bool_), *self._held_out])
        self._same_prompts(held_out)
        self._alike(held_out)
        return self._found

    def _begin(self) -> None:
        self._common = shingles.Common([text.whole for text in self._first])
        self._found.common_share = self._common.share
        batch: list[Text] = []
        waiting = 0
        for text in self._first:
            batch.append(text)
            waiting += len(text.whole)
            if waiting >= _BATCH_BYTES:
                self._take(batch)
                batch, waiting = [], 0
        self._take(batch)
        self._first = []

    def _take(self, texts: Sequence[Text]) -> None:
        if not texts or self._common is None:
            return
        self._watch.look()
        numbers = np.arange(self._count, self._count + len(texts), dtype=np.uint32)
        self._count += len(texts)
        self._held_out.append(np.fromiter((t.held_out for t in texts), np.bool_, len(texts)))
        asked = [n for n, text in enumerate(texts) if text.prompt]
        digests = (xxhash.xxh3_64_intdigest(texts[n].prompt) for n in asked)
        self._prompts.add(np.fromiter(digests, np.uint64, len(asked)), numbers[asked])
        flat, counts = self._common.without(*shingles.pieces_of([text.whole for text in texts]))
        enough = counts >= shingles.FEWEST_PIECES
        kept = np.zeros((len(texts), shingles.SLOTS), np.uint8)
        if enough.any():
            flat = flat[np.repeat(enough, counts)]
            made = shingles.signatures(flat, counts[enough])
            kept[enough] = shingles.short(made)
            rows = np.repeat(numbers[enough], shingles.BANDS)
            self._bands.add(shingles.keys(made).ravel(), rows)
        self._found.rows += int(enough.sum())
        self._found.too_short += int((~enough).sum())
        self._signatures.write(kept.tobytes())

    def _same_prompts(self, held_out: Any) -> None:
        for rows, begins in self._prompts.shared(self._watch.look):
            leaders, members = _stars(rows, begins)
            self._found.same_prompt.add(members, leaders, np.ones(len(members)))
            trained, given_away = _across(rows, begins, held_out)
            self._found.leaked_prompts.add(given_away, trained, np.ones(len(given_away)))

    def _alike(self, held_out: Any) -> None:
        """Rows that share a key with an earlier one and are alike are joined into groups.

        Of those that share a key each is compared with the first, and each held-out one with the
        first that is trained on: a few pairs instead of the square of their number.
        """
        groups = _Groups(len(held_out))
        leaked = np.zeros(len(held_out), np.bool_)
        for rows, begins in self._bands.shared(self._watch.look):
            for leaders, members in _pieces(*_stars(rows, begins)):
                apart = groups.of(leaders) != groups.of(members)
                found = self._verified(members[apart], leaders[apart])
                self._found.near.add(*groups.join(*found))
            for trained, held in _pieces(*_across(rows, begins, held_out)):
                new = ~leaked[held]
                pairs = self._verified(held[new], trained[new])
                _, once = np.unique(pairs[0], return_index=True)
                leaked[pairs[0]] = True
                self._found.leaked.add(*(values[once] for values in pairs))
        self._found.groups, self._found.largest_group = groups.sizes()

    def _verified(self, rows: Any, others: Any) -> tuple[Any, Any, Any]:
        """The pairs that are alike by their signatures, with how much."""
        self._watch.look()
        measures = shingles.alike(self._read(rows), self._read(others))
        right = measures >= ALIKE
        return rows[right], others[right], measures[right]

    def _read(self, rows: Any) -> Any:
        """Not memory-mapped: every page of the file that was touched would count as memory."""
        numbers, back = np.unique(rows, return_inverse=True)
        file, size = self._signatures.fileno(), shingles.SLOTS
        data = b"".join(os.pread(file, size, number * size) for number in numbers.tolist())
        return np.frombuffer(data, np.uint8).reshape(-1, size)[back]


class _Groups:
    """Rows joined into groups. A group is known by its first row."""

    def __init__(self, rows: int) -> None:
        self._above = np.arange(rows, dtype=np.uint32)

    def of(self, rows: Any) -> Any:
        top = self._above[rows]
        while (higher := self._above[top]).tobytes() != top.tobytes():
            top = higher
        self._above[rows] = top
        return top

    def join(self, rows: Any, others: Any, measures: Any) -> tuple[Any, Any, Any]:
        """Join each pair; those that were not together before."""
        new = np.zeros(len(rows), np.bool_)
        for number, pair in enumerate(zip(rows.tolist(), others.tolist(), strict=True)):
            first, second = sorted(map(self._top, pair))
            if first != second:
                self._above[second] = first
                new[number] = True
        return rows[new], others[new], measures[new]

    def sizes(self) -> tuple[int, int]:
        """(groups of more than one row, rows in the largest)."""
        joined = np.flatnonzero(self._above != np.arange(len(self._above), dtype=np.uint32))
        if not len(joined):
            return 0, 0
        _, counts = np.unique(self.of(joined), return_counts=True)
        return len(counts), int(counts.max()) + 1

    def _top(self, row: int) -> int:
        while (above := int(self._above[row])) != row:
            row = above
        return row


def _stars(rows: Any, begins: Any) -> tuple[Any, Any]:
    """(first, other) for all others of each run."""
    lengths = np.diff(np.append(begins, len(rows)))
    others = np.ones(len(rows), np.bool_)
    others[begins] = False
    return np.repeat(rows[begins], lengths)[others], rows[others]


def _across(rows: Any, begins: Any, held_out: Any) -> tuple[Any, Any]:
    """(first that is trained on, held out) for all held-out rows of each run that has both."""
    held = held_out[rows]
    if not held.any() or held.all():
        return rows[:0], rows[:0]
    nowhere = len(rows)
    places = np.where(held, nowhere, np.arange(len(rows)))
    firsts = np.repeat(np.minimum.reduceat(places, begins), np.diff(np.append(begins, len(rows))))
    pairs = held & (firsts < nowhere)
    return rows[firsts[pairs]], rows[pairs]


def _pieces(left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    for begin in range(0, len(left), _PAIRS_AT_ONCE):
        yield left[begin : begin + _PAIRS_AT_ONCE], right[begin : begin + _PAIRS_AT_ONCE]

"""Counting while rows stream by: lengths, tokens, and one row to show."""

from __future__ import annotations

from collections import Counter
from typing import Any

from training_data.tokenise import TokenRow


class Tally:
    """What the verdict is made of. Lengths are counted by value: few, however many rows."""

    def __init__(self) -> None:
        self.rows_train = 0
        self.rows_held_out = 0
        self.tokens_train = 0
        self.loss_tokens_train = 0
        self.lengths: Counter[int] = Counter()
        self.shown: TokenRow | None = None

    def add(self, row: TokenRow) -> None:
        if row.held_out:
            self.rows_held_out += 1
            return
        self.rows_train += 1
        self.tokens_train += sum(len(side.ids) for side in row.sides)
        self.loss_tokens_train += sum(map(loss_tokens, row.sides))
        self.lengths[max(side.length for side in row.sides)] += 1
        if self.shown is None:
            self.shown = row

    @property
    def masked_share(self) -> float:
        """Part of the training tokens that carries no loss, 0–1."""
        return 1 - self.loss_tokens_train / self.tokens_train if self.tokens_train else 0.0

    def length_summary(self) -> dict[str, int]:
        """Tokens a training row before truncation: least, percentiles (nearest rank), most."""
        return percentiles(self.lengths)

    def length_histogram(self) -> list[dict[str, int]]:
        """Training rows by tokens before truncation."""
        return histogram(self.lengths)


def percentiles(lengths: Counter[int]) -> dict[str, int]:
    """min, p50, p95, p99 and max of values that are counted; nearest rank."""
    if not lengths:
        return {}
    total = lengths.total()
    marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    summary: dict[str, int] = {"min": min(lengths)}
    passed = 0
    for length in sorted(lengths):
        passed += lengths[length]
        for name, share in marks.items():
            if name not in summary and passed >= share * total:
                summary[name] = length
    return summary | {"max": max(lengths)}


def histogram(lengths: Counter[int]) -> list[dict[str, int]]:
    """Rows by length, in steps that double: [{from, to, rows}, …], `to` included."""
    bits = Counter[int]()
    for length, rows in lengths.items():
        bits[length.bit_length()] += rows
    if not bits:
        return []
    return [
        {"from": (1 << size) >> 1, "to": (1 << size) - 1, "rows": bits[size]}
        for size in range(min(bits), max(bits) + 1)
    ]


def loss_tokens(row: TokenRow) -> int:
    return sum(end - start for start, end in row.loss)


def segments(row: TokenRow, decode: Any) -> list[dict[str, Any]]:
    """A row as pieces of text, each with whether it carries loss: [{text, loss}, …]."""
    pieces = []
    position = 0
    for start, end in [*row.loss, (len(row.ids), len(row.ids))]:
        for ids, loss in ((row.ids[position:start], False), (row.ids[start:end], True)):
            if ids:
                pieces.append({"text": decode(ids), "loss": loss})
        position = end
    return pieces

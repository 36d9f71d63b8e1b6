"""What is compared of a row, as numbers: the set of its pieces, its signature, its keys.

A row's pieces are all runs of eight bytes of its text in lower case with white space made even:
no word breaks are needed, so every script is served alike, and eight bytes are one 64-bit number.
Two rows are as alike as their sets of pieces are: |A ∩ B| / |A ∪ B|, Jaccard's measure. rensa's
RMinHash keeps 128 numbers of each set, from which the measure is estimated within ±0.035.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PIECE_BYTES = 8
LONGEST_CHARACTERS = 1 << 15  # of a row that are compared; the rest of a longer one is not
# Fewer pieces say too little: in a sentence of 30 letters one other word makes another sentence.
FEWEST_PIECES = 24

SLOTS = 128
BANDS = 16  # of 8 slots: a pair that is alike to 0.8 shares one with a chance of 0.95, to 0.9 of 1
_SEED = 42
# Text that stands in more than this share of the rows is a template, not what a row says.
_COMMON = 0.5
_FEWEST_FOR_COMMON = 20
_TABLE_BITS = 16

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiplying by it mixes bits
_HALF = np.uint64(32)


def evened(text: str) -> bytes:
    """The text as it is compared."""
    return " ".join(text[:LONGEST_CHARACTERS].lower().split()).encode()


def pieces_of(texts: Sequence[bytes]) -> tuple[Any, Any]:
    """All pieces of all texts, one text after another, mixed; and how many each text has."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    counts = np.maximum(lengths - (PIECE_BYTES - 1), 0)
    data = b"".join([*texts, bytes(2 * PIECE_BYTES)])
    total = int(lengths.sum())
    flat = np.empty(total, np.uint64)
    for shift in range(PIECE_BYTES):  # eight views of the bytes as numbers, a byte apart
        places = flat[shift::PIECE_BYTES]
        places[:] = np.frombuffer(data, "<u8", len(places), shift)
    # The last seven windows of each text reach into the next one.
    inside = np.ones(len(flat), np.bool_)
    ends = np.cumsum(lengths)
    for back in range(1, PIECE_BYTES):
        inside[(ends - back)[lengths >= back]] = False
    flat = flat[inside] * _ODD
    flat ^= flat >> _HALF
    return flat, counts


class Common:
    """Pieces that most rows have: a prompt's layout, one long instruction for all rows.

    Without them left out, rows that differ in a short input alone would all be near duplicates.
    They are learnt from the first rows. A table that fits into a core's cache tells them again; it
    takes a few others for them, the same ones in every row, which changes nothing.
    """

    def __init__(self, first: Sequence[bytes]) -> None:
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self.share = 0.0  # of the first rows' pieces
        if len(first) < _FEWEST_FOR_COMMON:
            return
        flat, counts = pieces_of(first)
        ends = np.cumsum(counts)
        once_each = [
            np.unique(flat[end - count : end]) for end, count in zip(ends, counts, strict=True)
        ]
        found, rows = np.unique(np.concatenate(once_each), return_counts=True)
        common = found[rows > _COMMON * len(first)]
        self._table[self._places(common)] = True
        if len(flat):
            self.share = float(np.mean(self._table[self._places(flat)]))

    def without(self, flat: Any, counts: Any) -> tuple[Any, Any]:
        """Pieces and counts as `pieces_of` gives them, less the common ones."""
        if not self.share:
            return flat, counts
        kept = ~self._table[self._places(flat)]
        passed = np.concatenate([[0], np.cumsum(kept)])
        ends = np.cumsum(counts)
        return flat[kept], passed[ends] - passed[ends - counts]

    @staticmethod
    def _places(pieces: Any) -> Any:
        return pieces >> np.uint64(64 - _TABLE_BITS)


def signatures(flat: Any, counts: Any) -> Any:
    """A row of SLOTS 32-bit numbers for each text. None may be without pieces."""
    from rensa import RMinHash

    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, bounds, SLOTS, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(counts), SLOTS)


def keys(signature: Any) -> Any:
    """BANDS keys for each signature: rows that share one are looked at as a pair."""
    words = np.ascontiguousarray(signature).view(np.uint64).reshape(len(signature), BANDS, -1)
    mixed = np.arange(1, BANDS + 1, dtype=np.uint64) * _ODD + np.zeros_like(words[:, :, 0])
    for part in range(words.shape[2]):
        mixed = (mixed ^ words[:, :, part]) * _ODD
        mixed ^= mixed >> _HALF
    return mixed


def short(signature: Any) -> Any:
    """A byte of each slot is kept: 128 bytes a row. Two different slots agree in 1 of 256."""
    mixed = signature * np.uint32(0x9E3779B1)
    return (mixed >> np.uint32(24)).astype(np.uint8)


def alike(left: Any, right: Any) -> Any:
    """The estimated measure for each pair of short signatures."""
    agreeing = np.mean(left == right, axis=1)
    by_chance = 1 / 256
    return (agreeing - by_chance) / (1 - by_chance)

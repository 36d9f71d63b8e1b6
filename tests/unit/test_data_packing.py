"""Packing: every row whole, in one pack, none over the limit, and few packs."""

from __future__ import annotations

import math
from array import array
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_data import packing
from training_data.arrow_files import NO_LOSS, TokenWriter
from training_data.packing import best_fit_decreasing, pack_file
from training_data.tokenise import TokenRow

CAPACITY = 16
ROWS = st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=CAPACITY), max_size=80)


@given(st.lists(st.integers(1, CAPACITY), max_size=200))
def test_best_fit_decreasing(lengths: list[int]) -> None:
    packs = best_fit_decreasing(lengths, CAPACITY)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= CAPACITY for pack in packs)
    # The bound that is proved for best fit decreasing: 11/9 of the best, and a little.
    assert len(packs) <= math.ceil(11 / 9 * max(sum(lengths) / CAPACITY, _over_half(lengths))) + 1


def _over_half(lengths: list[int]) -> int:
    return sum(2 * length > CAPACITY for length in lengths)


def written(path: Path, rows: list[list[int]]) -> None:
    with TokenWriter(path, held_out=False) as writer:
        for row in rows:
            loss = [(len(row) // 2, len(row))]
            writer.add(TokenRow(array("i", row), loss, held_out=False, length=len(row)))


def read(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(stream).read_all().to_pylist()
    return rows


def documents(pack: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    bounds = list(accumulate(pack["seq_lengths"], initial=0))
    return [
        (tuple(pack["input_ids"][start:end]), tuple(pack["labels"][start:end]))
        for start, end in pairwise(bounds)
    ]


@settings(max_examples=60)
@given(rows=ROWS)
def test_no_token_and_no_label_is_lost(
    rows: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    written(folder / "rows.arrow", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW_ROWS", 1)  # a window for each record batch
        count = pack_file(folder / "rows.arrow", folder / "packs.arrow", CAPACITY, lambda: None)
    packs = read(folder / "packs.arrow")
    assert len(packs) == count
    expected = [
        (
            tuple(row),
            # The first token of a document is never learnt: another's last would predict it.
            tuple(v if i >= max(len(row) // 2, 1) else NO_LOSS for i, v in enumerate(row)),
        )
        for row in rows
    ]
    assert sorted(d for pack in packs for d in documents(pack)) == sorted(expected)
    for pack in packs:
        assert len(pack["input_ids"]) == len(pack["labels"]) == sum(pack["seq_lengths"])
        assert len(pack["input_ids"]) <= CAPACITY


def test_packs_are_as_full_as_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.data_utils", reason="the trainer is not installed")
    rows = [[1] * (1 + (n * 7919) % 200) for n in range(3000)]
    written(tmp_path / "rows.arrow", rows)
    ours = pack_file(tmp_path / "rows.arrow", tmp_path / "packs.arrow", 512, lambda: None)
    theirs = trl._pack_bfd(pa.table({"input_ids": rows}), 512).num_rows
    assert ours <= theirs * 1.01


def test_a_window_holds_many_record_batches(tmp_path: Path) -> None:
    rows = [[1] * 100 for _ in range(2000)]  # several batches of 65,536 tokens
    written(tmp_path / "rows.arrow", rows)
    assert pack_file(tmp_path / "rows.arrow", tmp_path / "packs.arrow", 400, lambda: None) == 500
    with (tmp_path / "packs.arrow").open("rb") as stream:
        assert len(list(pa.ipc.open_stream(stream))) == 1

"""The held-out part and duplicates: by content, stable, apart from each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_data.dedupe import Seen, Side
from training_data.formats.rows import Plain
from training_data.split import held_out, split

FINGERPRINTS = st.lists(st.integers(0, (1 << 128) - 1), unique=True, max_size=60)
FRACTIONS = st.floats(0, 0.5)


def sides(fingerprints: list[int], fraction: float) -> dict[int, bool]:
    return dict(split(((value, value) for value in fingerprints), fraction))


@given(FINGERPRINTS, FRACTIONS, st.randoms())
def test_every_row_falls_on_one_side_whatever_the_order(
    fingerprints: list[int], fraction: float, chance: st.DataObject
) -> None:
    found = list(split(((value, value) for value in fingerprints), fraction))
    assert sorted(value for value, _ in found) == sorted(fingerprints)
    shuffled = fingerprints.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis types its randoms loosely
    assert sides(shuffled, fraction) == dict(found)


@given(FINGERPRINTS, FINGERPRINTS, FRACTIONS)
def test_a_row_keeps_its_side_when_rows_are_added(
    fingerprints: list[int], more: list[int], fraction: float
) -> None:
    before = sides(fingerprints, fraction)
    after = sides(list(dict.fromkeys(fingerprints + more)), fraction)
    by_hash_alone = any(held_out(value, fraction) for value in fingerprints)
    for value in fingerprints:
        if by_hash_alone or not before[value]:
            assert after[value] == before[value] or not by_hash_alone


@given(FINGERPRINTS, st.floats(0.001, 0.5))
def test_something_is_held_out_and_something_is_left(
    fingerprints: list[int], fraction: float
) -> None:
    found = sides(fingerprints, fraction)
    if len(fingerprints) > 1:
        assert any(found.values())
    if not all(held_out(value, fraction) for value in fingerprints):
        assert not all(found.values())


def test_the_share_is_what_was_asked() -> None:
    rows = ((n, Plain("", str(n)).fingerprint()) for n in range(20_000))
    assert sum(side for _, side in split(rows, 0.05)) == pytest.approx(1000, rel=0.15)


def test_no_fraction_holds_nothing_out() -> None:
    assert sides([1, 2, 3], 0) == {1: False, 2: False, 3: False}


@given(st.lists(st.tuples(st.integers(0, (1 << 128) - 1), st.sampled_from(Side)), max_size=50))
def test_the_first_sight_is_remembered(rows: list[tuple[int, Side]]) -> None:
    import tempfile

    known: dict[int, Side] = {}
    with tempfile.TemporaryDirectory() as folder, Seen(Path(folder)) as seen:
        for fingerprint, side in [*rows, *rows]:
            key = fingerprint & 0xFFFF_FFFF_FFFF_FFFF
            assert seen.first_side(fingerprint, side) == known.get(key)
            known.setdefault(key, side)
    assert not Path(folder).exists()


def test_nothing_of_the_seen_rows_is_left_on_the_disk(tmp_path: Path) -> None:
    with Seen(tmp_path) as seen:
        seen.first_side(1, Side.TRAIN)
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []

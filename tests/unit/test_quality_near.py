"""Near duplicates: found from a stated likeness on, few others with them, however many rows."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training_data.quality import buckets, near, shingles
from training_data.quality.near import Compared, Comparison, Text
from training_data.watch import PreparationStopped, Watch

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnop", k=3 + n % 7)) for n in range(4000)]
Rows = list[tuple[str, bool]]


def jaccard(left: bytes, right: bytes) -> float:
    size = shingles.PIECE_BYTES
    sets = [{text[n : n + size] for n in range(len(text) - size + 1)} for text in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def compared(folder: Path, rows: Rows, *, batch: int = 300, prompts: bool = False) -> Compared:
    texts = [
        Text(shingles.evened(text), shingles.evened(text) if prompts else b"", held_out)
        for text, held_out in rows
    ]
    with Comparison(folder, Watch()) as comparison:
        for begin in range(0, len(texts), batch):
            comparison.add(texts[begin : begin + batch])
        return comparison.finish()


def sentence(chance: random.Random, words: int = 60) -> list[str]:
    return chance.choices(WORDS, k=words)


def edited(words: list[str], changes: int, chance: random.Random) -> list[str]:
    found = list(words)
    for place in chance.sample(range(len(words)), changes):
        found[place] = chance.choice(WORDS)
    return found


@pytest.fixture(params=["memory", "disk"])
def _place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "disk":
        monkeypatch.setattr(buckets, "_FLUSH_RECORDS", 1000)


@pytest.mark.usefixtures("_place")
def test_pairs_alike_to_85_percent_are_found_and_those_under_65_are_not(tmp_path: Path) -> None:
    chance = random.Random(7)
    rows: Rows = []
    alike = unlike = 0
    for _ in range(1500):
        first = sentence(chance)
        second = edited(first, chance.choice([1, 2, 9, 12]), chance)
        texts = [" ".join(first), " ".join(second)]
        measure = jaccard(*map(shingles.evened, texts))
        if measure >= 0.85:
            alike += 1
        elif measure < 0.65:
            unlike += 1
        else:
            continue
        rows += [(texts[0], False), (texts[1], False)]
    chance.shuffle(rows)
    found = compared(tmp_path, rows)
    assert min(alike, unlike) > 500
    assert alike * 0.98 <= found.near.count <= alike + unlike * 0.01
    assert found.groups == found.near.count
    assert found.largest_group == 2
    assert found.rows == len(rows)


@pytest.mark.usefixtures("_place")
def test_a_group_of_many_is_one_group(tmp_path: Path) -> None:
    chance = random.Random(3)
    first = sentence(chance)
    many = [(" ".join(edited(first, 1, chance)), False) for _ in range(40)]
    rows = [(" ".join(sentence(chance)), False) for _ in range(400)]
    found = compared(tmp_path, [*rows[:200], *many, *rows[200:]])
    assert (found.near.count, found.groups, found.largest_group) == (39, 1, 40)
    numbers = {row for pair in found.near.listed for row in pair[:2]}
    assert numbers <= set(range(200, 240))
    assert all(0.8 <= measure <= 1 for _, _, measure in found.near.listed)


@pytest.mark.usefixtures("_place")
def test_held_out_rows_that_training_gives_away(tmp_path: Path) -> None:
    chance = random.Random(5)
    held = [sentence(chance) for _ in range(200)]
    near_ones = [(" ".join(edited(words, 1, chance)), False) for words in held[:150]]
    others = [(" ".join(sentence(chance)), False) for _ in range(300)]
    # Held-out rows that are like each other alone are no leak.
    twins = [(" ".join(edited(words, 1, chance)), True) for words in held[150:]]
    rows = [*((" ".join(words), True) for words in held), *twins, *near_ones, *others]
    for order in (rows, rows[::-1]):
        found = compared(tmp_path, order)
        assert 147 <= found.leaked.count <= 150
        assert found.near.count == pytest.approx(200, abs=4)


@pytest.mark.usefixtures("_place")
def test_the_same_prompt_on_both_sides(tmp_path: Path) -> None:
    chance = random.Random(6)
    rows = [(" ".join(sentence(chance)), False) for _ in range(300)]
    again = [(text.upper().replace(" ", "\n "), True) for text, _ in rows[:30]]
    found = compared(tmp_path, [*rows, *again], prompts=True)
    assert found.leaked_prompts.count == 30
    assert found.same_prompt.count == 30
    assert found.leaked_prompts.listed[0][:2] == (300, 0)


def test_text_common_to_most_rows_does_not_make_them_alike(tmp_path: Path) -> None:
    chance = random.Random(8)
    layout = " ".join(sentence(chance, 200))
    rows = [(f"{layout} {' '.join(sentence(chance, 20))}", False) for _ in range(600)]
    found = compared(tmp_path, rows)
    assert found.common_share > 0.8
    assert found.near.count == 0
    assert found.rows == 600


def test_short_rows_are_not_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, [("yes", False), ("no", True), ("maybe", False)] * 20)
    assert (found.rows, found.too_short, found.near.count) == (0, 60, 0)


def test_no_rows_at_all(tmp_path: Path) -> None:
    assert compared(tmp_path, []) == Compared()


def test_rows_beyond_the_most_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST_ROWS", 650)
    chance = random.Random(9)
    found = compared(tmp_path, [(" ".join(sentence(chance)), False) for _ in range(900)])
    assert (found.rows, found.left_out) == (650, 250)


@pytest.mark.parametrize("text", ["", "a", "a" * 8, "机器学习", "x" * 100_000])
def test_pieces_are_those_of_each_text_alone(text: str) -> None:
    texts = [shingles.evened(one) for one in (text, "between them", text)]
    flat, counts = shingles.pieces_of(texts)
    ends = np.cumsum(counts)
    for content, end, count in zip(texts, ends, counts, strict=True):
        alone, number = shingles.pieces_of([content])
        assert number == [count] == [max(len(content) - shingles.PIECE_BYTES + 1, 0)]
        assert (flat[end - count : end] == alone).all()


@pytest.mark.parametrize("spill", [10, 1 << 16])
def test_keys_that_rows_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spill: int) -> None:
    monkeypatch.setattr(buckets, "_FLUSH_RECORDS", spill)
    chance = random.Random(1)
    keys = [chance.getrandbits(64) for _ in range(300)]
    rows = [(chance.choice(keys), row) for row in range(1000)]
    with buckets.Buckets(tmp_path / "keys", 8) as made:
        for begin in range(0, 1000, 7):
            some = np.array(rows[begin : begin + 7], np.uint64)
            made.add(some[:, 0], some[:, 1])
        runs = [
            part_rows[begin:end].tolist()
            for part_rows, begins in made.shared(lambda: None)
            for begin, end in pairwise([*begins.tolist(), len(part_rows)])
        ]
    expected = [[row for key, row in rows if key == one] for one in set(keys)]
    assert sorted(runs) == sorted(run for run in expected if len(run) > 1)


def test_a_stop_is_looked_for_while_comparing(tmp_path: Path) -> None:
    stop = threading.Event()
    watch = Watch(should_stop=stop.is_set)
    chance = random.Random(2)
    with Comparison(tmp_path, watch) as comparison:
        texts = [" ".join(sentence(chance)).encode() for _ in range(700)]
        comparison.add([Text(text, b"", held_out=False) for text in texts])
        stop.set()
        watch._next = 0.0  # the next look asks at once
        with pytest.raises(PreparationStopped):
            comparison.finish()

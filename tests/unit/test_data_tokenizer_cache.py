"""Frozen tokenizers below CELORA_HOME: kept while jobs use them, and not for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_tokenizers import CHATML, make_tokenizer
from tests.environment import variables
from training_data.tokenizer import load

DAY = 86_400


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with variables(CELORA_HOME=str(tmp_path / "home")):
        yield tmp_path / "home" / "tokenizers"


def let_rest(cache: Path, days: float) -> None:
    at = time.time() - days * DAY
    for path in cache.iterdir():
        os.utime(path, (at, at))


def test_tokenizers_unused_for_a_month_go_when_another_comes(cache: Path, tmp_path: Path) -> None:
    first, second, third = (
        make_tokenizer(tmp_path / name, template=template)
        for name, template in (("first", None), ("second", CHATML), ("third", f"{CHATML} "))
    )
    one = load(str(first))
    let_rest(cache, 29)
    two = load(str(second))
    assert Path(one.path).exists()

    let_rest(cache, 31)
    assert load(str(first)) == one  # it is used: it rests no longer
    three = load(str(third))
    assert {path for path in cache.iterdir() if ".tokenizer" in path.name} == {
        Path(one.path),
        Path(three.path),
    }
    assert len(list(cache.iterdir())) == 4
    assert not Path(two.path).exists()

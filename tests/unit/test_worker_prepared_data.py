"""Prepared data is trained on only with the bytes that preprocessing left (fault 28)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_worker import prepared_data
from models.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.arrow").write_bytes(b"tokens")
    (tmp_path / "verdict.json").write_text("{}")
    prepared_data.seal(tmp_path, "digest-1")
    return tmp_path


def test_what_was_sealed_is_accepted(folder: Path) -> None:
    prepared_data.verify(folder, "digest-1")


def test_other_data_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="other data"):
        prepared_data.verify(folder, "digest-2")


def test_changed_bytes_are_refused_even_after_a_good_look(folder: Path) -> None:
    prepared_data.verify(folder, "digest-1")
    (folder / "train.arrow").write_bytes(b"tokenS")
    with pytest.raises(DataError, match="changed"):
        prepared_data.verify(folder, "digest-1")


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "train.arrow").unlink()
    with pytest.raises(DataError, match="changed"):
        prepared_data.verify(folder, "digest-1")


def test_an_unsealed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.arrow").write_bytes(b"tokens")
    with pytest.raises(DataError, match="not there or not whole"):
        prepared_data.verify(tmp_path, "digest-1")

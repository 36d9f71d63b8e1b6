"""The first look at an uploaded file."""

from __future__ import annotations

from pathlib import Path

import pytest

from celora.api import upload_check
from models.errors import DataError


def test_it_ends_after_a_while_and_leaves_the_rest_to_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 5 + '{"prompt": 1}\n')
    with pytest.raises(DataError):
        upload_check.require_rows(path, {})
    monkeypatch.setattr(upload_check, "_LONGEST_SECONDS", -1.0)
    upload_check.require_rows(path, {})

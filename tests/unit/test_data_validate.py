"""Validating says what preparing would, without a base model or with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import InputError, SpecError
from models.spec import JobSpec
from tests.data_tokenizers import make_tokenizer
from training_data.prepare import prepare
from training_data.validate import validate


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(
        tmp_path / "rows.jsonl", [{"q": f"{n}+1?", "a": f"{n + 1}"} for n in [*range(60), 1]]
    )


COLUMNS = {"instruction": "q", "output": "a"}


def test_without_a_base_model(rows: Path) -> None:
    report = validate(str(rows), columns=COLUMNS)
    assert report.ok
    assert report.verdict["shape"] == "instruction"
    assert report.verdict["columns"]["output"] == "a"
    assert (report.verdict["rows_read"], report.verdict["dropped"]) == (61, {"duplicate": 1})
    assert report.verdict["rows_train"] + report.verdict["rows_eval"] == 60
    assert "lengths" not in report.verdict
    assert json.loads(json.dumps(report.record()))["ok"] is True


def test_with_a_base_model_it_is_the_verdict_of_preparing(rows: Path, tmp_path: Path) -> None:
    base = str(make_tokenizer(tmp_path / "base"))
    report = validate(
        str(rows), columns=COLUMNS, tokenizer_path=base, quality=True, epochs=7, packing="on"
    )
    spec = JobSpec(base_model=base, dataset=str(rows), columns=COLUMNS, epochs=7, packing="on")
    prepared = prepare(spec, tokenizer_path=base, scratch=tmp_path / "out")
    for verdict in (report.verdict, prepared.verdict):
        verdict["seconds"] = 0
        # A job's preparation names the languages of fewer rows.
        assert verdict["quality"].pop("language")["rows"] > 0
    assert report.verdict == prepared.verdict


def test_wrong_rows_are_in_the_report(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    report = validate(str(rows))
    assert not report.ok
    assert report.error == "the data has 1 problem"
    assert [(problem.line, problem.what) for problem in report.problems] == [
        (2, "there is no `completion`; the row has: prompt")
    ]
    assert report.verdict["shape"] == "prompt_completion"
    assert report.record()["problem_count"] == 1


def test_data_of_no_known_shape(rows: Path) -> None:
    report = validate(str(rows))
    assert not report.ok
    assert "the columns are: q, a" in str(report.error)
    assert report.verdict["shape"] is None


def test_what_cannot_be_looked_at_raises(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        validate(str(tmp_path / "missing.jsonl"))
    with pytest.raises(SpecError):
        validate(str(rows), shape="table")
    with pytest.raises(SpecError, match="validation_fraction"):
        validate(str(rows), validation_fraction=2)

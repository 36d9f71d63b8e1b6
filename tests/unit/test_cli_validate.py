"""`celora validate`: what is in the data, what is wrong with it, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import celora
from celora.cli import application
from celora.cli.failures import run
from gpu_worker.trainer.tiny_base import random_base
from models.errors import InputError


def command(*arguments: str) -> int:
    app = application(["validate"])
    return run(lambda: app(["validate", *arguments], prog_name="celora", standalone_mode=False))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) for n in range(40))
    )
    return path


def test_good_data(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(rows), "--map", "instruction=question", "--map", "output=answer") == 0
    told = capsys.readouterr().out
    assert "instruction ← question, output ← answer" in told
    assert "to train on" in told


def test_with_a_base_model_lengths_steps_and_a_row_are_shown(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = random_base(tmp_path / "base")
    columns = ("--map", "instruction=question", "--map", "output=answer")
    assert command(str(rows), *columns, "--base-model", str(base), "--max-steps", "7") == 0
    told = capsys.readouterr().out
    for part in ("tokens a row", "7 of ", "### Response:", "⟦", "warning: only 7 optimizer steps"):
        assert part in told, part


def test_bad_rows_are_listed_with_line_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{broken\n')
    assert command(str(path)) == 2
    told = capsys.readouterr().err
    assert "line 2: broken JSON" in told
    assert command(str(path), "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["problem_count"], report["problems"][0]["line"]) == (False, 1, 2)


def test_of_rows_without_a_known_shape_nothing_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"foo": 1}\n' * 5)
    assert command(str(path)) == 2
    told = capsys.readouterr()
    assert "the columns are: foo" in told.err
    assert "shape" in told.out
    assert "read" not in told.out


def test_a_mistyped_field_is_told_as_its_option(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(rows), "--validation-fraction", "2") == 2
    assert capsys.readouterr().err.startswith("error: --validation-fraction: ")


def test_the_python_call(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = celora.validate("rows.jsonl", columns={"instruction": "question", "output": "answer"})
    assert report.ok
    assert report.source == str(rows)
    with pytest.raises(InputError):
        celora.validate("missing.jsonl")

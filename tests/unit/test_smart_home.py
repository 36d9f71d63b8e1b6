"""The committed example is what its generator makes, and its held-out rows are really held out."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from gpu_worker import smart_home
from models.spec import parse_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "smart_home"


def _generator() -> Any:
    found = spec_from_file_location("generate", EXAMPLE / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_files_are_what_the_generator_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _generator().main(tmp_path)

    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()
    assert "1200 rows" in capsys.readouterr().out


def test_no_row_that_was_learnt_has_a_held_out_combination() -> None:
    held_out = {row["output"] for row in smart_home.held_out_rows()}
    train = {row["output"] for row in smart_home.train_rows()}

    assert len(held_out) == 100
    assert len(train) == 1200
    assert not held_out & train
    values = [set(json.loads(output).values()) for output in held_out]
    for row in smart_home.pretraining_rows(8000):
        words = row["input"].rstrip(".?").replace(",", "").split()
        said = {int(word) if word.isdigit() else word for word in words}
        assert not any(four <= said for four in values)


def test_the_pretraining_never_shows_the_tasks_answers() -> None:
    for row in smart_home.pretraining_rows(2000):
        assert row["instruction"] != smart_home.INSTRUCTION
        assert not any(f'"{key}"' in row["output"] for key in smart_home.Request._fields)


def test_the_job_file_is_a_job() -> None:
    fields = json.loads((EXAMPLE / "job.json").read_text())
    spec = parse_spec(fields | {"base_model": "base"})

    for name in (spec.dataset, spec.eval_dataset):
        assert name is not None
        assert (EXAMPLE / name).is_file()
    assert spec.eval_generate_rows == 100

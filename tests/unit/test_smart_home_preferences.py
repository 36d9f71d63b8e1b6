"""The committed example of preference pairs is what its generator makes, and fits its job."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from models.spec import parse_spec
from training_data.validate import validate

EXAMPLE = Path(__file__).parents[2] / "examples" / "smart_home_preferences"


def test_the_file_is_what_the_generator_makes(tmp_path: Path) -> None:
    found = spec_from_file_location("generate_pairs", EXAMPLE / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    module.main(tmp_path)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (EXAMPLE / "pairs.jsonl").read_bytes()


def test_the_job_takes_it() -> None:
    fields = json.loads((EXAMPLE / "job.json").read_text()) | {"base_model": "base"}
    spec = parse_spec(fields)
    report = validate(
        str(EXAMPLE / spec.dataset),
        method=spec.method,
        validation_fraction=spec.validation_fraction,
    )
    assert report.ok, report.error
    verdict = report.verdict
    assert (verdict["shape"], verdict["rows_read"], verdict["dropped"]) == ("preference", 300, {})
    assert verdict["rows_eval"] >= 20

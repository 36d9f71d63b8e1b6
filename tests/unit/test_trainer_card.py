"""The model card tells how an adapter was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_worker.trainer.card import card
from models.spec import JobSpec
from tests.trainer_driver import make_run

RESULT: dict[str, Any] = {
    "steps": 60,
    "epoch": 1.5,
    "trained_tokens": 123_456,
    "batch_size": 2,
    "gradient_accumulation": 8,
    "warmup_steps": 6,
    "optimizer": "adamw_torch",
    "precision": "bf16",
    "attention": "sdpa",
    "train_loss": 1.25,
    "versions": {"torch": "2.13.0", "peft": "0.21.0"},
}


def text(tmp_path: Path, **fields: Any) -> str:
    run = make_run(Path("/cache/models--tiny"), tmp_path, tmp_path, **fields)
    return card(run, JobSpec.model_validate(run.spec), RESULT)


def test_it_names_base_data_settings_and_versions(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps({"rows_train": 900, "tokens_train": 54_321}))
    card = text(tmp_path, name="tutor 3", rank=4, use_rslora=True)
    for line in (
        "base_model: tiny/base",
        "library_name: peft",
        "# tutor 3",
        "| data set | `test.jsonl` |",
        "| tokens train | 54,321 |",
        "| data digest | sha256:feed |",
        "| rank | 4 |",
        "| alpha | 32 (rank-stabilised) |",
        "| tokens | 123,456 |",
        "| seed | 42 |",
        "Made with torch 2.13.0, peft 0.21.0.",
    ):
        assert line in card.splitlines(), line
    assert "/cache/" not in card


def test_a_full_model_has_no_rank(tmp_path: Path) -> None:
    card = text(tmp_path, method="full")
    assert "library_name: transformers" in card
    assert "| rank |" not in card
    assert "peft" not in card.split("## Use")[1]

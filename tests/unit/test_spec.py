"""JobSpec: its documented defaults, what it refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import SpecError
from models.spec import PROJECTION_LAYERS, JobSpec, parse_spec


def spec(**fields: Any) -> JobSpec:
    return parse_spec({"base_model": "org/model", "dataset": "rows.jsonl"} | fields)


def test_defaults_are_the_documented_ones() -> None:
    job = spec()
    assert (job.rank, job.alpha, job.dropout) == (16, 32, 0.05)
    assert job.target_modules == PROJECTION_LAYERS
    assert (job.epochs, job.batch_size, job.gradient_accumulation) == (3, 4, 4)
    assert (job.schedule, job.warmup_steps, job.gradient_clip) == ("cosine", 100, 0.3)
    assert (job.max_sequence_length, job.packing) == (2048, "auto")
    assert (job.checkpoint_every_steps, job.keep_checkpoints, job.log_every_steps) == (200, 3, 10)
    assert job.time_limit_seconds == 86_400


@pytest.mark.parametrize(
    ("method", "rate", "optimizer"),
    [
        ("lora", 1e-4, "adamw_torch"),
        ("qlora", 2e-4, "paged_adamw_8bit"),
        ("full", 2e-5, "adamw_torch"),
    ],
)
def test_rate_and_optimizer_follow_the_method(method: str, rate: float, optimizer: str) -> None:
    job = spec(method=method)
    assert job.resolved_learning_rate == rate
    assert job.resolved_optimizer == optimizer


def test_what_is_asked_for_wins_over_the_method() -> None:
    job = spec(method="qlora", learning_rate=1e-3, optimizer="adamw_bnb_8bit")
    assert job.resolved_learning_rate == 1e-3
    assert job.resolved_optimizer == "adamw_bnb_8bit"


@pytest.mark.parametrize(("total", "warmup"), [(60, 6), (9, 0), (1000, 100), (50_000, 100)])
def test_warmup_is_never_more_than_a_tenth_of_the_run(total: int, warmup: int) -> None:
    assert spec().resolved_warmup_steps(total) == warmup


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"rnk": 8}, "rnk"),
        ({"rank": 0}, "rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"epochs": 0}, "epochs"),
        ({"gpus": 2}, "gpus"),
        ({"seed": 2**31}, "seed"),
        ({"columns": {"question": "prompt"}}, "columns"),
        ({"eval_answer_pattern": "("}, "eval_answer_pattern"),
        ({"target_modules": []}, "target_modules"),
        ({"track": ["sheets"]}, "track.0"),
        ({"name": "../up"}, "name"),
        ({"max_steps": 2**31}, "max_steps"),  # more than a row's integer holds
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as raised:
        spec(**fields)
    assert raised.value.where is not None
    assert raised.value.where.startswith(where)
    assert raised.value.remedy


def test_several_wrong_fields_are_named() -> None:
    with pytest.raises(SpecError, match="wrong as well: dropout, epochs"):
        spec(rank=0, dropout=2, epochs=0)


def test_a_quantised_base_takes_no_adapter_on_the_head() -> None:
    with pytest.raises(SpecError, match="lm_head"):
        spec(method="qlora", target_modules=["q_proj", "lm_head"])
    assert spec(method="lora", target_modules=["q_proj", "lm_head"])


def test_pure_bf16_is_for_full_fine_tuning_alone() -> None:
    with pytest.raises(SpecError, match="bf16_pure"):
        spec(bf16_pure=True)
    assert spec(method="full", bf16_pure=True).bf16_pure


def test_a_spec_cannot_be_changed() -> None:
    job = spec()
    with pytest.raises(ValidationError):
        job.rank = 8  # type: ignore[misc]  # the point of the test


def test_a_spec_survives_its_json() -> None:
    job = spec(target_modules="auto", columns={"prompt": "question"}, track=["tensorboard"])
    assert parse_spec(job.model_dump(mode="json")) == job


def test_every_field_is_described() -> None:
    assert all(field.description for field in JobSpec.model_fields.values())

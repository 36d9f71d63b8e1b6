"""From OpenAI's words to JobSpec's, and names of fine-tuned models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from celora.api.app import create_app
from celora.api.errors import ApiError, ErrorAnswer
from celora.api.finetune import _standing
from celora.api.hyperparameters import (
    AnsweredDpo,
    DpoHyperparameters,
    Hyperparameters,
    answered,
    auto_batch,
    auto_epochs,
    spec_fields,
)
from celora.api.job_answers import FineTuningJob
from celora.api.job_mapping import Files, base_model, digest, openai_spec, short_spec
from celora.api.job_requests import CreateJob, ShortForm
from celora.api.model_names import parse_name, shown_base, shown_suffix
from celora.api.stream_messages import parse_place
from models.errors import SpecError
from models.queries.following import Place
from models.spec import JobSpec
from models.tables import Job
from tests.environment import variables

FILES = Files("/store/train.jsonl", None, rows=None)


def spec_of(files: Files = FILES, **fields: Any) -> JobSpec:
    request = CreateJob.model_validate({"model": "owner/base", "training_file": "file-1"} | fields)
    return openai_spec(request, files, seed=5)


def test_a_bare_request_has_the_usual_numbers() -> None:
    spec = spec_of()
    assert (spec.method, spec.epochs, spec.effective_batch_size, spec.seed) == ("lora", 3, 16, 5)
    assert spec.learning_rate is None
    assert spec.name is None


def test_numbers_are_taken_as_they_are() -> None:
    numbers = {"n_epochs": 7, "batch_size": 10, "learning_rate_multiplier": 2}
    spec = spec_of(hyperparameters=numbers, celora={"method": "qlora", "rank": 4}, suffix="a b/c")
    assert (spec.epochs, spec.batch_size, spec.gradient_accumulation) == (7, 2, 5)
    assert spec.learning_rate == pytest.approx(4e-4)
    assert (spec.rank, spec.name, spec.adapter_name) == (4, "a-b-c", "a-b-c")
    mine = spec_of(celora={"adapter_name": "bot"}, suffix="a b/c")
    assert (mine.name, mine.adapter_name) == ("a-b-c", "bot")
    told = answered(spec)
    assert (told.n_epochs, told.batch_size, told.learning_rate_multiplier) == (7, 10, 2)


def test_the_newer_place_of_numbers_wins() -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}
    assert spec_of(hyperparameters={"n_epochs": 9}, method=method).epochs == 4
    both = spec_of(hyperparameters={"n_epochs": 9, "batch_size": 3}, method=method)
    assert (both.epochs, both.effective_batch_size) == (4, 3)
    older = spec_of(hyperparameters={"n_epochs": 9}, method={"type": "dpo"})
    assert (older.method, older.epochs) == ("dpo", 9)


def test_rows_to_validate_on_are_read_at_each_checkpoint() -> None:
    files = Files("/store/train.jsonl", "/store/valid.jsonl", rows=None)
    spec = spec_of(files)
    assert spec.eval_every_steps == spec.checkpoint_every_steps
    assert spec_of(files, celora={"checkpoint_every_steps": 7}).eval_every_steps == 7
    assert spec_of(files, celora={"eval_every_steps": 3}).eval_every_steps == 3
    assert spec_of().eval_every_steps is None


def test_the_examples_of_the_page_are_what_it_says() -> None:
    page = create_app().openapi()["components"]["schemas"]
    for example in page["CreateJob"]["examples"]:
        assert openai_spec(CreateJob.model_validate(example), FILES, seed=5)
    for example in page["ShortForm"]["examples"]:
        sent: BaseModel = ShortForm.model_validate(example)
        assert short_spec(sent.model_dump(exclude_unset=True), FILES).rank == 8
    for shown in (FineTuningJob, ErrorAnswer):
        assert page[shown.__name__]["examples"]  # where FastAPI leaves out what is null
        (example,) = shown.model_json_schema()["examples"]
        assert shown.model_validate(example, strict=True)
        assert set(example) == set(shown.model_fields)


def test_dpo() -> None:
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}}
    spec = spec_of(method=method)
    assert (spec.method, spec.dpo_beta, spec.epochs) == ("dpo", 0.3, 3)
    told = answered(spec)
    assert isinstance(told, AnsweredDpo)
    assert (told.beta, told.learning_rate_multiplier) == (0.3, 1)


def test_auto_leaves_what_celora_was_told() -> None:
    chosen = {"epochs": 0.5, "batch_size": 2, "gradient_accumulation": 3}
    spec = spec_of(celora=chosen, hyperparameters={"n_epochs": "auto"})
    assert (spec.epochs, spec.batch_size, spec.gradient_accumulation) == (0.5, 2, 3)
    assert spec_of(celora={"max_steps": 9}).max_steps == 9
    assert answered(spec).n_epochs == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"hyperparameters": {"n_epochs": 2}, "celora": {"epochs": 3}}, "celora.epochs"),
        ({"seed": 1, "celora": {"seed": 1}}, "celora.seed"),
        ({"method": {"type": "dpo"}, "celora": {"method": "lora"}}, "celora.method"),
        ({"celora": {"method": "dpo"}}, "celora.method"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"model": "file:///etc"}, "model"),
        ({"model": "../base"}, "model"),
        ({"model": "gpt-4o-mini-2024-07-18"}, "model"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        spec_of(**fields)
    assert (refused.value.status_code, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"celora": {"rank": 0}}, "celora.rank"),
        ({"celora": {"start_from_adapter": True}}, "spec"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e9}},
            "hyperparameters.learning_rate_multiplier",
        ),
    ],
)
def test_a_wrong_value_is_told_in_the_callers_words(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as refused:
        spec_of(**fields)
    assert refused.value.where == where


def test_aliases() -> None:
    with variables(CELORA_MODEL_ALIASES="gpt-4o-mini=Qwen/Q, mine = /bases/one"):
        assert base_model("gpt-4o-mini", param="model") == "Qwen/Q"
        assert base_model("mine", param="model") == "/bases/one"
        assert base_model("other/one", param="model") == "other/one"


@given(rows=st.none() | st.integers(0, 10**9), batch=st.none() | st.integers(1, 256))
def test_a_batch_is_whole_micro_batches(rows: int | None, batch: int | None) -> None:
    assert 1 <= auto_epochs(rows) <= 10
    assert 4 <= auto_batch(rows) <= 16
    asked = Hyperparameters(batch_size=batch)
    fields = spec_fields(asked, method="lora", rows=rows, chosen=set())
    assert fields["batch_size"] <= 4
    product = fields["batch_size"] * fields["gradient_accumulation"]
    assert product == (auto_batch(rows) if batch is None else batch)


def test_the_digest_is_of_what_was_sent() -> None:
    one = CreateJob(model="a/b", training_file="f", seed=1)
    same = CreateJob.model_validate({"seed": 1, "training_file": "f", "model": "a/b"})
    assert digest(one) == digest(same)
    assert digest(one) != digest(CreateJob(model="a/b", training_file="f", seed=2))
    assert digest(DpoHyperparameters()) != digest(Hyperparameters())


@pytest.mark.parametrize(
    ("name", "prefix", "step"),
    [
        ("ft:a/b:team:bot:Ab12Cd34", "ftjob-Ab12Cd34", None),
        ("ft:a:b:te:am::Ab12Cd34:ckpt-step-20", "ftjob-Ab12Cd34", 20),
    ],
)
def test_names_are_found_again(name: str, prefix: str, step: int | None) -> None:
    named = parse_name(name)
    assert named is not None
    assert (named.job_id_prefix, named.step) == (prefix, step)
    assert name.startswith(named.model)


@pytest.mark.parametrize(
    "name", ["", "gpt", "ft:a:b:c", "ft:a:b:c:short", "ft:a:b:c:Ab12Cd3-", "ft:a:b:c:Ab12Cd34:x"]
)
def test_what_is_no_name(name: str) -> None:
    assert parse_name(name) is None


def test_names_show_no_folders() -> None:
    assert shown_base("/srv/bases/tiny/") == "tiny"
    assert shown_base("s3://bucket/tiny") == "tiny"
    assert shown_base("owner/model") == "owner/model"
    assert shown_base("scripted:?steps=1") == "scripted"
    assert shown_suffix("My bot: v2!") == "My-bot-v2"


@pytest.mark.parametrize("text", ["", "x", "1.2-3", "1.2-3.4.5.a\nb", "9" * 30 + ".1-1.1.1."])
def test_an_id_of_nobodys_begins_at_the_beginning(text: str) -> None:
    assert parse_place(text) == (Place(), False)


def test_the_short_form_tells_no_place_of_the_store() -> None:
    error = {"code": "invalid_data", "message": "bad", "where": "/store/files/1/file-a/data.jsonl"}
    job = Job(
        id="ftjob-1",
        state="failed",
        base_model="owner/model",
        method="lora",
        stage="preprocess",
        step=0,
        trained_tokens=0,
        error=error,
    )
    assert _standing(job).error == {"code": "invalid_data", "message": "bad"}

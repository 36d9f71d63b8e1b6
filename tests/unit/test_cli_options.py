"""Every field of JobSpec is an option, and what is typed there becomes what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from celora.cli import application
from celora.cli.spec_options import given_fields, read_spec_file
from celora.client import with_absolute_paths
from celora.spec_fields import SpecFields
from models.errors import InputError, SpecError
from models.spec import JobSpec, parse_spec


def parameters(*arguments: str) -> dict[str, Any]:
    """What `celora submit ARGUMENTS` hands to its function."""
    group: Any = typer.main.get_command(application(["submit"]))
    command = group.commands["submit"]
    found: dict[str, Any] = command.make_context("submit", list(arguments)).params
    return found


def fields(*arguments: str) -> dict[str, Any]:
    return given_fields(
        {k: v for k, v in parameters(*arguments).items() if k in JobSpec.model_fields}
    )


def test_every_field_has_an_option_with_its_description_and_default() -> None:
    group: Any = typer.main.get_command(application(["submit"]))
    options = {param.name: param for param in group.commands["submit"].params}
    for name, field in JobSpec.model_fields.items():
        assert field.description in options[name].help, name
    assert "[default: 16]" in options["rank"].help
    assert "[required]" in options["base_model"].help
    assert options["columns"].opts == ["--map", "--columns"]


def test_nothing_is_set_that_was_not_typed() -> None:
    assert fields() == {}


def test_the_keywords_of_submit_are_those_of_jobspec() -> None:
    keywords, model = get_type_hints(SpecFields), get_type_hints(JobSpec)
    assert set(keywords) == set(JobSpec.model_fields)
    for name in keywords:
        assert keywords[name] == model[name], name


def test_values_arrive_as_jobspec_takes_them() -> None:
    typed = (
        "--base-model b --dataset d --map prompt=question --map completion=answer --method qlora"
        " --max-steps 60 --learning-rate 3e-4 --no-evaluate --use-rslora --alpha 8"
        " --target-modules q_proj,v_proj --track wandb --track mlflow --metadata team=a=b"
    )
    spec = parse_spec(fields(*typed.split()))
    assert spec == JobSpec(
        base_model="b",
        dataset="d",
        columns={"prompt": "question", "completion": "answer"},
        method="qlora",
        max_steps=60,
        learning_rate=3e-4,
        evaluate=False,
        use_rslora=True,
        target_modules=("q_proj", "v_proj"),
        track=("wandb", "mlflow"),
        metadata={"team": "a=b"},
        alpha=8,
    )


def test_target_modules_auto() -> None:
    assert (
        parse_spec(
            fields("--base-model", "b", "--dataset", "d", "--target-modules", "auto")
        ).target_modules
        == "auto"
    )


@pytest.mark.parametrize("text", ["question", "=question", "prompt="])
def test_a_mapping_without_both_sides_names_the_option(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        fields("--map", text)
    assert caught.value.where == "--map"
    assert text in caught.value.what


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.json", '{"base_model": "b", "rank": 8}'),
        ("job.yaml", "base_model: b\nrank: 8\n"),
        ("job.yml", "base_model: b\nrank: 8\n"),
        ("job.toml", 'base_model = "b"\nrank = 8\n'),
    ],
)
def test_job_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_spec_file(tmp_path / name) == {"base_model": "b", "rank": 8}


def test_paths_in_a_job_file_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "job.json").write_text('{"base_model": "org/name", "dataset": "rows.jsonl"}')
    assert read_spec_file(tmp_path / "job.json") == {
        "base_model": "org/name",
        "dataset": str(tmp_path / "rows.jsonl"),
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("job.json", "{", "not well-formed"),
        ("job.yaml", "a: [", "not well-formed"),
        ("job.toml", "a = ", "not well-formed"),
        ("job.json", "[]", "one object"),
        ("job.txt", "", "ends in"),
        ("job.json", None, "cannot be read"),
    ],
)
def test_bad_job_files_are_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_spec_file(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def test_local_paths_become_absolute_and_names_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    given = {"base_model": "base", "dataset": "missing.jsonl", "eval_dataset": "org/name"}
    assert with_absolute_paths(given) == {
        "base_model": str(tmp_path / "base"),
        "dataset": str(tmp_path / "missing.jsonl"),
        "eval_dataset": "org/name",
    }
    for url in ("s3://bucket/rows.jsonl", "scripted:?steps=3"):
        assert with_absolute_paths({"dataset": url}) == {"dataset": url}
    assert with_absolute_paths({"dataset": "../x"}) == {"dataset": str(tmp_path.parent / "x")}

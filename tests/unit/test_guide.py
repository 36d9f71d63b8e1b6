"""The guide's numbers are the product's, and its advice can be followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celora import guide
from celora.cli import application
from celora.cli.failures import run
from models.spec import DEFAULT_LEARNING_RATES, JobSpec

SETTINGS = [setting for one in guide.TOPICS for setting in one.settings]


def job(field: str, value: Any, **others: Any) -> JobSpec:
    """The least that makes a value of this field valid."""
    needs: dict[str, dict[str, Any]] = {
        "bf16_pure": {"method": "full"},
        "dpo_beta": {"method": "dpo"},
        "dpo_base": {"method": "dpo"},
    }
    return JobSpec(
        **{"base_model": "m", "dataset": "d"} | needs.get(field, {}) | others | {field: value}
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_a_setting_is_a_field_whose_default_and_alternatives_hold(setting: guide.Setting) -> None:
    default = JobSpec.model_fields[setting.field].default
    if not setting.default:
        assert setting.default_text in guide.markdown()
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert float(setting.default_text) == default
    for value in setting.alternatives:
        assert getattr(job(setting.field, value), setting.field) in (value, (value,))
        assert value != default
    assert setting.when


def test_figures_in_the_text_are_the_products() -> None:
    spec = JobSpec(base_model="m", dataset="d")
    rates = guide.topic("learning-rate")
    assert rates is not None
    for method, rate in DEFAULT_LEARNING_RATES.items():
        assert f"{rate:g} {method}" in rates.text
    alpha = guide.topic("alpha")
    assert alpha is not None
    assert alpha.name == "rank"
    assert spec.alpha == 2 * spec.rank
    assert spec.alpha / spec.rank**0.5 == 8  # as it says of use_rslora
    batch = guide.topic("batch")
    assert batch is not None
    assert f": {spec.effective_batch_size} by default" in batch.text
    choice = guide.topic("method")
    assert choice is not None
    assert "12 GB with qlora" in choice.text


def test_every_topic_is_found_by_its_name_and_by_its_fields() -> None:
    for one in guide.TOPICS:
        assert guide.topic(one.name) is one
    found = guide.topic("--learning-rate")
    assert found is not None
    assert found.name == "learning-rate"
    assert guide.topic("weather") is None


@pytest.fixture
def celora(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: (exit code, output, errors)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        app = application(list(arguments))
        code = run(lambda: app(list(arguments), prog_name="celora", standalone_mode=False))
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def test_the_command(celora: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = celora("guide")
    assert code == 0
    for one in guide.TOPICS:
        assert one.title in out
    code, out, _ = celora("guide", "--topic", "rank", "--json")
    (told,) = json.loads(out)
    assert (code, told["name"]) == (0, "rank")
    assert told["settings"][0] | {"alternatives": None} == {
        "field": "rank",
        "alternatives": None,
        "when": told["settings"][0]["when"],
        "default": "16",
    }
    code, out, err = celora("guide", "weather")
    assert code != 0
    assert "learning-rate" in err

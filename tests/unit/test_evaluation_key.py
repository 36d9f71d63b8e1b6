"""One key for the same base evaluation, another for every difference that shows in its figures."""

import subprocess
import sys
from typing import Any

import pytest

from gpu_worker.evaluation_key import base_cache_key, cache_key_of
from models.spec import parse_spec

_SPEC = {"base_model": "base", "dataset": "data.jsonl"}


def _key(revision: str = "abc", digest: str = "d", device: str = "cuda", **fields: Any) -> str:
    spec = parse_spec(_SPEC | fields)
    return cache_key_of(spec, base_revision=revision, data_digest=digest, device=device)


@pytest.mark.parametrize(
    "changed",
    [
        {"revision": "abd"},
        {"digest": "e"},
        {"device": "cpu"},
        {"method": "qlora"},
        {"method": "full"},
        {"precision": "fp32"},
        {"eval_generate_rows": 10},
        {"eval_max_new_tokens": 10},
        {"eval_answer_pattern": "#### (.*)"},
    ],
)
def test_what_shows_in_the_figures_is_in_the_key(changed: dict[str, Any]) -> None:
    assert _key(**changed) != _key()


def test_what_only_concerns_training_is_not() -> None:
    assert _key(rank=4, learning_rate=1e-3, epochs=1, seed=7, name="other") == _key()


def test_the_order_of_settings_does_not_matter() -> None:
    one = base_cache_key("r", "none", "d", {"a": 1, "b": None})
    other = base_cache_key("r", "none", "d", {"b": None, "a": 1})
    assert one == other
    assert len(one) == 64


def test_the_supervisor_can_make_keys_without_torch() -> None:
    check = "import sys, gpu_worker.evaluation_key; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

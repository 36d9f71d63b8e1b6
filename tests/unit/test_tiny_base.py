"""Bases made on the spot are models that transformers itself can read."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.trainer.tiny_base import random_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), hidden=32, layers=3, vocab=400)


def test_transformers_loads_every_weight(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    model, info = loaded

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape == (400, 32)


def test_the_tokenizer_takes_any_text_and_renders_chats(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    text = 'Wörter, 漢字 and {"a": 1}\n\ttabs'

    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert whole == prompt + "yes<|im_end|>\n"


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    first, again, other = (
        (random_base(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )

    assert first == again
    assert first != other


@pytest.mark.slow
def test_the_demos_base_reports_its_pretraining_and_appears_when_it_is_whole(
    tmp_path: Path,
) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "gpu_worker.trainer.tiny_base", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    ran = subprocess.run(
        [*command, "--pretrain-steps", "3"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    *steps, end = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(told["step"], told["total"]) for told in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0]["loss"] == pytest.approx(math.log(427), abs=1.0)  # the vocabulary's size
    assert end == {"path": str(out)}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in out.iterdir()
    }
    assert list(tmp_path.iterdir()) == [out]  # nothing half-made is left

    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "it exists already" in again.stderr

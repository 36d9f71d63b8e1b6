"""The random base is a model that transformers itself can read."""

from pathlib import Path

import pytest

from gpu_worker.trainer.tiny_base import random_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), hidden=32, layers=3, vocab=400)


def test_transformers_loads_every_weight(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape == (400, 32)


def test_the_tokenizer_takes_any_text_and_renders_chats(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
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

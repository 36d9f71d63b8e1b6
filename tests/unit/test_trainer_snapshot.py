"""Everything that a job has been seen to leave on a base shows in the snapshot."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gpu_worker.trainer.base_model import Base, BaseKey
from gpu_worker.trainer.snapshot import Snapshot, take
from gpu_worker.trainer.tiny_base import random_base


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(random_base(tmp_path_factory.mktemp("base")))


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).train(mode=False)


def wrap_forward(model: Any) -> None:
    original = model.forward
    model.forward = types.MethodType(lambda _, *a, **k: original(*a, **k), model)


def hook(model: Any) -> None:
    model.get_input_embeddings().register_forward_hook(lambda *_: None)


def checkpointing(model: Any) -> None:
    model.activation_checkpointing_enable()


def freeze(model: Any) -> None:
    model.model.norm.weight.requires_grad_(False)  # noqa: FBT003 - torch's signature


def nudge(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(1.0))


def swap(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        first, last = weight[0].clone(), weight[-1].clone()
        weight[0], weight[-1] = last, first


def scale_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def retype(model: Any) -> None:
    model.model.norm.to(torch.bfloat16)


def adapt(model: Any) -> None:
    layer = model.model.layers[0].self_attn
    layer.q_proj = torch.nn.Sequential(layer.q_proj)


def leave_gradient(model: Any) -> None:
    model.model.norm.weight.grad = torch.zeros_like(model.model.norm.weight)


def train_mode(model: Any) -> None:
    model.model.layers[0].train()


def configure(model: Any) -> None:
    model.config.use_cache = False


def configure_generation(model: Any) -> None:
    model.generation_config.pad_token_id = 5


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (wrap_forward, "forward is new"),
    (hook, "_forward_hooks"),
    (checkpointing, "gradient_checkpointing"),
    (freeze, "requires_grad was True, is False"),
    (nudge, "values of model.layers.1.mlp.up_proj.weight changed"),
    (swap, "values of model.layers.0.mlp.up_proj.weight changed"),
    (scale_buffer, "values of model.rotary_emb.inv_freq changed"),
    (retype, "dtype was torch.float32, is torch.bfloat16"),
    (adapt, "model.layers.0.self_attn.q_proj.0 is new"),
    (leave_gradient, "has_gradient was False, is True"),
    (train_mode, "training was False, is True"),
    (configure, "setting config"),
    (configure_generation, "setting generation_config"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=lambda c: getattr(c, "__name__", ""))
def test_a_change_shows(tokenizer: Any, change: Callable[[Any], None], words: str) -> None:
    model = llama()
    before = take(model, tokenizer)
    assert before.differences(take(model, tokenizer)) == []
    change(model)
    found = before.differences(take(model, tokenizer))
    assert any(words in text for text in found), found


def test_a_tokenizer_left_otherwise_shows(tokenizer: Any) -> None:
    model = llama()
    before = take(model, tokenizer)
    side = tokenizer.padding_side
    tokenizer.padding_side = "left" if side == "right" else "right"
    try:
        assert "tokenizer.sides" in before.differences(take(model, tokenizer))[0]
    finally:
        tokenizer.padding_side = side


def test_many_differences_are_counted_not_listed(tokenizer: Any) -> None:
    model = llama()
    before = take(model, tokenizer)
    model.requires_grad_(requires_grad=False)
    found = before.differences(take(model, tokenizer))
    assert len(found) == 21
    assert found[-1].startswith("and ")


def test_equal_models_have_equal_snapshots(tokenizer: Any, tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path)
    one: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    two: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    first: Snapshot = take(one, tokenizer)
    assert first.differences(take(two, tokenizer)) == []


def test_dropout_that_a_dpo_job_turned_off_is_put_back(tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    from trl.trainer.utils import disable_dropout_in_model

    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model: Any = GPT2LMHeadModel(config).train(mode=False)
    key = BaseKey(
        path="base",
        revision="1",
        quantized=False,
        weights=torch.float32,
        attention="sdpa",
        attention_named=False,
        trust_remote_code=False,
    )
    base = Base(key, model, tokenizer)
    disable_dropout_in_model(model)
    assert any(".p was" in one or "p was" in one for one in base.differences())
    base.restore(model)
    assert base.differences() == []

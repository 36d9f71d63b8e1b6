"""Which layers an adapter goes on, and how it is written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gpu_worker.trainer.adapter import (
    load_adapter_weights,
    lora_config,
    save_adapter,
    target_modules,
)
from models.errors import SpecError, TrainingError
from models.spec import PROJECTION_LAYERS, JobSpec


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"base_model": "a", "dataset": "b", "rank": 2} | fields)


class Routed(nn.Module):
    """A layer of experts with a router, and numbered layers, as mixtures have them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.lm_head = nn.Linear(4, 8)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_auto_finds_the_linear_layers_but_not_the_output_head() -> None:
    assert target_modules("auto", llama()) == sorted(PROJECTION_LAYERS)
    config = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2)
    assert target_modules("auto", GPT2LMHeadModel(config)) == ["c_attn", "c_fc", "c_proj"]


def test_auto_leaves_routers_alone_and_names_numbered_layers_in_full() -> None:
    assert target_modules("auto", Routed()) == ["experts.0", "experts.1"]


def test_layers_that_do_not_exist_are_refused_and_the_real_ones_named() -> None:
    with pytest.raises(SpecError) as caught:
        target_modules(("q_proj", "c_attn"), llama())
    assert "c_attn" in caught.value.what
    assert "q_proj" not in caught.value.what
    assert "down_proj" in str(caught.value.remedy)
    assert caught.value.where == "target_modules"


def test_an_adapter_on_the_output_head_is_refused() -> None:
    with pytest.raises(SpecError, match="lm_head"):
        target_modules(("q_proj", "lm_head"), llama())


def test_an_adapter_comes_back_bit_by_bit_in_the_type_it_has(tmp_path: Path) -> None:
    model = get_peft_model(llama(), lora_config(spec(), llama()))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter).to(torch.bfloat16)
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    save_adapter(model, tmp_path, base_name="org/base", base_revision="abc")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    load_adapter_weights(model, tmp_path)
    after = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(
        after[n].dtype is torch.bfloat16 and torch.equal(after[n], before[n]) for n in before
    )


def test_an_adapter_of_another_rank_is_refused(tmp_path: Path) -> None:
    save_adapter(
        get_peft_model(llama(), lora_config(spec(rank=4), llama())),
        tmp_path,
        base_name="b",
        base_revision="r",
    )
    model = get_peft_model(llama(), lora_config(spec(rank=2), llama()))
    with pytest.raises(TrainingError, match="does not fit"):
        load_adapter_weights(model, tmp_path)


@pytest.mark.parametrize(("revision", "kept"), [("abc", "abc"), ("sha256:abc", None)])
def test_the_configuration_names_the_base(tmp_path: Path, revision: str, kept: str | None) -> None:
    model = get_peft_model(llama(), lora_config(spec(alpha=8), llama()))
    save_adapter(model, tmp_path, base_name="org/base", base_revision=revision)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["revision"] == kept
    assert config["target_modules"] == sorted(PROJECTION_LAYERS)
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 8, "LORA")

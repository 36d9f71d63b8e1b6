"""What vLLM and llama.cpp's converter are told, and what they may refuse."""

from __future__ import annotations

import pytest

from models.adapter_work import layout_of
from models.serving import adapter_concerns, gguf_concerns, how_to_load, vllm_rank


@pytest.mark.parametrize(
    ("rank", "step"), [(1, 8), (8, 8), (9, 16), (16, 16), (200, 256), (257, 320), (512, 512)]
)
def test_the_rank_goes_up_to_vllms_next_step(rank: int, step: int) -> None:
    assert vllm_rank(rank) == step


def test_a_rank_that_vllm_has_not_is_a_concern_and_gives_no_command() -> None:
    assert vllm_rank(513) is None
    assert adapter_concerns({"r": 513, "target_modules": ["q_proj"]}) == [
        "vLLM takes no adapter of rank 513 (at most 512)"
    ]
    assert how_to_load("adapter", "/f", base_model="b", rank=513, name="n") == []


def test_what_vllm_is_known_to_take_is_no_concern() -> None:
    fine = {"r": 16, "target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]}
    assert adapter_concerns(fine) == []
    odd = fine | {"target_modules": ["q_proj", "router"], "use_dora": True}
    found = adapter_concerns(odd | {"modules_to_save": ["lm_head"]})
    assert len(found) == 3
    assert "on router" in found[-1]


def test_commands_quote_what_a_shell_would_take_apart() -> None:
    assert how_to_load("adapter", "/my out", base_model="org/base", rank=9, name="bot-3") == [
        "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules bot-3='/my out'"
    ]
    assert how_to_load("merged", "/out", base_model="b", rank=None, name="n") == ["vllm serve /out"]
    convert, quantize = how_to_load("gguf-ready", "/out", base_model="b", rank=None, name="n")
    assert convert.endswith("convert_hf_to_gguf.py /out --outtype bf16 --outfile n.gguf")
    assert quantize.endswith("llama-quantize n.gguf n-q4_k_m.gguf Q4_K_M")


def test_the_converter_needs_a_known_architecture_and_a_tokenizer() -> None:
    known = {"architectures": ["LlamaForCausalLM"]}
    assert gguf_concerns(known, {"tokenizer.json"}) == []
    assert "OddForCausalLM" in gguf_concerns({"architectures": ["OddForCausalLM"]}, {"x"})[0]
    assert "tokenizer.model" in gguf_concerns(known, {"config.json"})[0]


def test_a_model_is_asked_as_it_was_trained_to_be() -> None:
    assert layout_of("instruction") == "instruction"
    assert layout_of("prompt_completion") == layout_of("text") == "plain"
    assert layout_of("messages") == layout_of(None) == "auto"

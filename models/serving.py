"""What others need to load an export: their commands, and their limits."""

from __future__ import annotations

import shlex
from typing import Any

from models.adapter_work import Format

# vllm/config/lora.py, MaxLoRARanks, as of version 0.27. Earlier ones lack 1 and 320.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Layers that vLLM's models take an adapter on, by the last part of their names.
_VLLM_LAYERS = frozenset(
    {
        "q_proj",
        "k_proj",
        "v_proj",
        "qkv_proj",
        "o_proj",
        "out_proj",
        "gate_proj",
        "up_proj",
        "gate_up_proj",
        "down_proj",
        "c_attn",
        "c_proj",
        "c_fc",
        "w1",
        "w2",
        "w3",
        "fc1",
        "fc2",
        "dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
        "query_key_value",
        "in_proj_qkv",
        "wqkv",
        "wo",
    }
)
# Of the many that convert_hf_to_gguf.py knows: those that people tune most.
_GGUF_ARCHITECTURES = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "PhiForCausalLM",
        "Phi3ForCausalLM",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "FalconForCausalLM",
        "BloomForCausalLM",
        "StableLmForCausalLM",
        "OlmoForCausalLM",
        "Olmo2ForCausalLM",
        "CohereForCausalLM",
        "GraniteForCausalLM",
        "SmolLM3ForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
    }
)


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank that takes the adapter; none: vLLM has no such large one."""
    return next((step for step in VLLM_RANKS if step >= rank), None)


def adapter_concerns(config: dict[str, Any]) -> list[str]:
    """Why vLLM may not take an adapter with this adapter_config.json, in sentences."""
    found = []
    if vllm_rank(int(config["r"])) is None:
        found.append(f"vLLM takes no adapter of rank {config['r']} (at most {VLLM_RANKS[-1]})")
    if config.get("modules_to_save"):
        found.append("vLLM takes no adapter with modules_to_save: export it merged")
    if config.get("use_dora"):
        found.append("vLLM takes no DoRA adapter: export it merged")
    layers = {str(name).rpartition(".")[2] for name in config["target_modules"]}
    if unknown := sorted(layers - _VLLM_LAYERS):
        found.append(
            f"not known whether vLLM takes an adapter on {', '.join(unknown)}; if not, export it"
            " merged"
        )
    return found


def gguf_concerns(config: dict[str, Any], files: set[str]) -> list[str]:
    """Why convert_hf_to_gguf.py may refuse a folder with this config.json and these files."""
    found = []
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not set(architectures) & _GGUF_ARCHITECTURES:
        named = ", ".join(architectures) or "none is named"
        found.append(f"not known whether the converter takes this architecture ({named})")
    if not files & {"tokenizer.model", "tokenizer.json", "tekken.json"}:
        found.append("the converter needs tokenizer.model or tokenizer.json; the base has neither")
    return found


def how_to_load(
    form: Format, folder: str, *, base_model: str, rank: int | None, name: str
) -> list[str]:
    """Commands, one a line, for an export that lies in the local folder `folder`."""
    where = shlex.quote(folder)
    if form == "merged":
        return [f"vllm serve {where}"]
    if form == "gguf-ready":
        return [
            f"python llama.cpp/convert_hf_to_gguf.py {where} --outtype bf16 --outfile {name}.gguf",
            f"llama.cpp/build/bin/llama-quantize {name}.gguf {name}-q4_k_m.gguf Q4_K_M",
        ]
    step = vllm_rank(rank or 1)
    if step is None:
        return []
    base = shlex.quote(base_model)
    options = f"--enable-lora --max-lora-rank {step} --lora-modules {name}={where}"
    return [f"vllm serve {base} {options}"]

"""`python -m gpu_worker.trainer.architecture`: what a model is made of, from its configuration.

Reads one JSON object from standard input, {config_path, trust_remote_code, spec}, and writes one
to standard output. The model is built on torch's meta device: its layers are real and its weights
take no memory, so that 70 billion parameters are counted exactly in seconds, for every architecture
that transformers knows. A process of its own: nobody else imports torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from gpu_worker.trainer.adapter import lora_config
from models.errors import BaseModelError, CeloraError
from models.spec import stored_spec


def describe(config_path: str, fields: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    """Counts of the base and of what `fields` would train. Raises BaseModelError, SpecError."""
    spec = stored_spec(fields)
    try:
        config = AutoConfig.from_pretrained(config_path, trust_remote_code=trust)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=trust
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseModelError(
            f"the model's configuration cannot be used: {str(error).partition(chr(10))[0]}",
            where=config_path,
            remedy="give the folder or hub name of a causal language model",
        ) from error
    model.tie_weights()
    text = config.get_text_config()
    counted = {
        "architecture": type(model).__name__,
        "parameters": _distinct(model),
        "quantisable": _quantisable(model),
        "hidden": text.hidden_size,
        "layers": text.num_hidden_layers,
        "vocabulary": text.vocab_size,
        "attention_heads": text.num_attention_heads,
        "key_value_heads": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        "head_width": getattr(text, "head_dim", None)
        or text.hidden_size // text.num_attention_heads,
        "feed_forward": _feed_forward(text),
        "tied": bool(getattr(text, "tie_word_embeddings", False)),
    }
    if spec.method == "full":
        return counted | {"trainable": counted["parameters"], "small_trainable": 0}
    adapted = get_peft_model(model, lora_config(spec, model))
    shapes = [p.numel() for p in adapted.parameters() if p.requires_grad]
    # bitsandbytes keeps the states of tensors below 4,096 elements in 32 bits.
    small = sum(count for count in shapes if count < 4096)  # noqa: PLR2004 (its min_8bit_size)
    return counted | {"trainable": sum(shapes), "small_trainable": small}


def _distinct(model: Any) -> int:
    """Parameters in all; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _quantisable(model: Any) -> int:
    """Weights that NF4 takes: those of every linear layer but the output head."""
    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def _feed_forward(text: Any) -> int:
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        value = getattr(text, name, None)
        if isinstance(value, int):
            return value
    return int(4 * text.hidden_size)


def main() -> int:
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    asked = json.load(sys.stdin)
    try:
        answer = describe(
            asked["config_path"], asked["spec"], trust=bool(asked.get("trust_remote_code"))
        )
    except CeloraError as error:
        answer = {"error": error.record()}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

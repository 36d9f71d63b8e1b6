"""Tiny Llama base models made on the spot: nothing to download for the demo and the tests.

    python -m gpu_worker.trainer.tiny_base --out DIR [--pretrain-steps N] [--seed N]

makes the demo's base, with a short pre-training. `random_base` writes random weights in
milliseconds, without importing torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.errors import InputError

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CORPUS = (
    "### Instruction:\nAnswer the question.\n\n### Input:\n### Response:\n",
    "the quick brown fox jumps over the lazy dog and what it says is read by the model",
    '{"question": "how many are there", "answer": "there are 12 of them"}',
)


def random_base(
    out: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 128,
    vocab: int = 512,
    initializer_range: float = 0.02,
    chat_template: bool = True,
    seed: int = 0,
) -> Path:
    """A random Llama and its tokenizer in `out`, which is made if need be and returned.

    The tokenizer is byte-level BPE, so it takes any text; `vocab` is at least 300.
    """
    tokenizer = train_tokenizer(_CORPUS, vocab)
    save_tokenizer(tokenizer, out, chat_template=chat_template)
    config = llama_config(
        tokenizer, hidden=hidden, layers=layers, heads=heads, mlp=mlp, vocab=vocab
    )
    config["initializer_range"] = initializer_range
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(
        _random_weights(config, np.random.default_rng(seed)),
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    return out


def pretrained_base(
    out: Path, *, steps: int = 400, seed: int = 1, progress: Callable[[int, int, float], None]
) -> Path:
    """The demo's base in `out`, which must not exist, and appears when it is whole.

    `progress` is told (step, steps in all, loss) after every step. Raises InputError.
    """
    from gpu_worker.trainer.pretraining import pretrain

    if out.exists():
        raise InputError("it exists already", where=str(out), remedy="name a new folder")
    incoming = out.with_name(f"{out.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    pretrain(incoming, steps=steps, seed=seed, progress=progress)
    incoming.rename(out)
    return out


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE that splits words from the space before them.

    A word is then the same token in a sentence and between the quotes of JSON, and a tiny model
    can copy it from one to the other.
    """
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\s|[A-Za-z]+|\d+|[^\sA-Za-z\d]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, *, chat_template: bool = True) -> None:
    """Write what `AutoTokenizer.from_pretrained` reads."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    if chat_template:
        (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def llama_config(
    tokenizer: Tokenizer, *, hidden: int, layers: int, heads: int, mlp: int, vocab: int
) -> dict[str, Any]:
    """config.json of a Llama with tied embeddings in float32."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def _random_weights(
    config: dict[str, Any], rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    hidden, mlp = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int) -> NDArray[np.float32]:
        values = rng.standard_normal(shape, dtype=np.float32)
        return values * np.float32(config["initializer_range"])

    ones = np.ones(hidden, dtype=np.float32)
    weights = {
        "model.embed_tokens.weight": normal(config["vocab_size"], hidden),
        "model.norm.weight": ones,
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{prefix}.self_attn.{projection}.weight"] = normal(hidden, hidden)
        weights[f"{prefix}.mlp.gate_proj.weight"] = normal(mlp, hidden)
        weights[f"{prefix}.mlp.up_proj.weight"] = normal(mlp, hidden)
        weights[f"{prefix}.mlp.down_proj.weight"] = normal(hidden, mlp)
        weights[f"{prefix}.input_layernorm.weight"] = ones
        weights[f"{prefix}.post_attention_layernorm.weight"] = ones
    return weights


def main() -> int:
    """One JSON line each step: step, total, loss; then one with the folder."""
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.trainer.tiny_base")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--pretrain-steps", type=int, default=400, help="default: 400")
    parser.add_argument("--seed", type=int, default=1, help="of weights and order; default: 1")
    given = parser.parse_args()
    # Read when torch is loaded. Threads that spin while they wait cost three times the CPU time
    # where others use the cores too, as the demo's database and workers do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        pretrained_base(given.out, steps=given.pretrain_steps, seed=given.seed, progress=_print)
    except InputError as error:
        print(error, file=sys.stderr)  # noqa: T201  a command's answer
        return error.exit_code
    print(json.dumps({"path": str(given.out)}))  # noqa: T201  as above
    return 0


def _print(step: int, total: int, loss: float) -> None:
    told = {"step": step, "total": total, "loss": round(loss, 4)}
    print(json.dumps(told), flush=True)  # noqa: T201  a caller reads it


if __name__ == "__main__":
    sys.exit(main())

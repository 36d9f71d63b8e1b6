"""LoRA on a base: which layers, with what settings, and how the result is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from models.errors import SpecError, TrainingError
from models.spec import JobSpec

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

# Linear layers that choose or classify instead of transforming: `auto` leaves them alone, as a
# low-rank change of a mixture's router unbalances its experts.
_NOT_ADAPTED = frozenset({"gate", "router", "shared_expert_gate", "score", "classifier"})


def lora_config(spec: JobSpec, model: Any) -> LoraConfig:
    """The adapter that `spec` asks for. Raises SpecError for layers that `model` has not."""
    # Whole numbers as such: other tools that read the configuration expect them.
    alpha = int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it: a fraction will do
        lora_dropout=spec.resolved_dropout,
        use_rslora=spec.use_rslora,
        bias="none",
        target_modules=target_modules(spec.target_modules, model),
    )


def target_modules(asked: str | Sequence[str], model: Any) -> list[str]:
    """Layer names in PEFT's sense, where `q_proj` means every layer whose name ends so."""
    linear = _linear_layers(model)
    output = _output_head(model)
    if asked == "auto":
        return _shortest({name for name in linear if _last(name) not in _NOT_ADAPTED}, linear)
    names = {name for name, _ in model.named_modules()}
    missing = [a for a in asked if not any(n == a or n.endswith(f".{a}") for n in names)]
    choice = ", ".join(sorted({_last(name) for name in linear}))
    if missing:
        raise SpecError(
            f"the model has no layer named {', '.join(missing)}",
            where="target_modules",
            remedy=f"use auto, or name some of: {choice}",
        )
    if output is not None and any(output == a or output.endswith(f".{a}") for a in asked):
        raise SpecError(
            f"an adapter on the output head ({_last(output)}) cannot be trained",
            where="target_modules",
            remedy=f"name some of: {choice}",
        )
    return sorted(asked)


def save_adapter(model: PeftModel, folder: Path, *, base_name: str, base_revision: str) -> None:
    """Write weights and configuration, which names the base as the user knows it.

    PEFT's own `save_pretrained` would name the folder it was loaded from, write a model card of
    its own, and look on the hub whether the vocabulary changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _adapter_state(model)
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    if not base_revision.startswith("sha256:"):  # a folder's digest is no revision of a hub
        config["revision"] = base_revision
    (folder / CONFIG_FILE).write_text(
        json.dumps(config, indent=2, sort_keys=True, default=_as_json) + "\n"
    )


def begin_with(model: Any, folder: Path) -> None:
    """Let the adapter that `model` has begin with the weights of an earlier job's.

    Raises SpecError where that is another kind of adapter, TrainingError where it cannot be read.
    """
    mine = model.peft_config["default"]
    try:
        others = json.loads((folder / CONFIG_FILE).read_text())
        pairs = {
            "rank": (mine.r, others["r"]),
            "alpha": (mine.lora_alpha, others["lora_alpha"]),
            "use_rslora": (mine.use_rslora, others.get("use_rslora", False)),
            "target_modules": (sorted(mine.target_modules), sorted(others["target_modules"])),
        }
        for field, (own, other) in pairs.items():
            if own != other:
                raise SpecError(
                    f"is {own}, but the adapter to begin with has {other}",
                    where=field,
                    remedy="use the same value as the job that made the adapter",
                )
        load_adapter_weights(model, folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"the adapter to begin with cannot be read: {type(error).__name__}: {error}",
            where=str(folder),
            remedy="it needs adapter_config.json and adapter_model.safetensors; run the job that "
            "made it again",
        ) from None  # the sentence says it all: no traceback in the job's log


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Copy saved weights into the adapter that `model` has, keeping the adapter's own type.

    PEFT's `load_adapter` would build new parameters in float32, and a quantised base's bfloat16
    adapter would then go on with other bits than it stopped with.
    """
    weights = load_file(folder / WEIGHTS_FILE)
    expected = _adapter_state(model)
    if weights.keys() != expected.keys() or any(
        weights[name].shape != tensor.shape for name, tensor in expected.items()
    ):
        raise TrainingError(
            "the saved adapter does not fit this job's adapter",
            where=str(folder),
            remedy="rank and target_modules must be the same as when it was saved",
        )
    with torch.no_grad():
        set_peft_model_state_dict(model, weights)


def _adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights by the names they are saved under.

    Chosen from the parameters: a whole `state_dict` would pack the scales of every quantised layer.
    """
    parameters = dict(model.named_parameters())
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, state_dict=parameters, save_embedding_layers=False
    )
    return state


def _linear_layers(model: Any) -> set[str]:
    """Names of all linear layers but the output head, quantised ones among them."""
    head = _output_head(model)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name != head
    }


def _output_head(model: Any) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _shortest(chosen: set[str], linear: set[str]) -> list[str]:
    """Last parts of the names where those mean no other layer, else whole names."""
    others = {_last(name) for name in linear - chosen}
    endings = {_last(name) for name in chosen}
    # A number alone (a layer of a Sequential) would match far too much.
    plain = endings.isdisjoint(others) and not any(ending.isdigit() for ending in endings)
    return sorted(endings if plain else chosen)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _as_json(value: Any) -> Any:
    if isinstance(value, Iterable):
        return sorted(value)  # sets, whose order differs from process to process
    return str(getattr(value, "value", value))

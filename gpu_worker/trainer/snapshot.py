"""The proof that a warm base model is as it was when it was loaded.

A training job leaves more behind than its adapter: wrapped forwards, hooks, switched-off gradients,
changed configuration. Each has made a later job train nothing while its losses looked plausible, so
nothing is assumed: the model is described once after loading and once before every job.

Weights and buffers are compared by a checksum computed on the device, so a model of any size
costs one read of its memory: each tensor's bytes as integers, cut into up to 64 pieces, each piece
summed modulo 2⁶⁴. Any single changed value changes a sum for certain, and moving values between
pieces does; a change of several values escapes only if their differences, as integers, cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PIECES = 64
_SHOWN = 20  # differences named; more only lengthen the message
_LONG = 80  # characters of a value shown
_CONTAINERS = frozenset({"_parameters", "_buffers", "_modules"})
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class TensorState:
    """Everything about a tensor but its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    has_gradient: bool


@dataclass(frozen=True)
class Snapshot:
    """A description of one model and its tokenizer, cheap to compare."""

    modules: dict[str, dict[str, Any]]
    tensors: dict[str, TensorState]
    sums: dict[str, tuple[int, ...]]
    settings: dict[str, Any]

    def requires_grad(self, name: str) -> bool:
        """Whether parameter `name` takes gradients."""
        return bool(self.tensors[name].requires_grad)

    def differences(self, other: Snapshot) -> list[str]:
        """What `other` has that this snapshot has not, and the other way round, in words."""
        found = list(_compare("module", self.modules, other.modules))
        found += _compare("tensor", self.tensors, other.tensors)
        found += [
            f"values of {name} changed"
            for name, sums in self.sums.items()
            if other.sums.get(name, sums) != sums
        ]
        found += _compare("setting", self.settings, other.settings)
        if len(found) > _SHOWN:
            found = [*found[:_SHOWN], f"and {len(found) - _SHOWN} more"]
        return found


def take(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Snapshot:
    """Describe `model` and `tokenizer` as they are now."""
    tensors = dict(_tensors(model))
    return Snapshot(
        modules={name: _module(module) for name, module in model.named_modules()},
        tensors={
            name: TensorState(
                tuple(t.shape), t.dtype, t.device, t.requires_grad, t.grad is not None
            )
            for name, t in tensors.items()
        },
        sums=checksums(tensors),
        settings=_settings(model, tokenizer),
    )


def _module(module: nn.Module) -> dict[str, Any]:
    """A module's class and everything set on the instance.

    An instance `forward`, a checkpointing function, a hook: each is an entry that was not there.
    Objects count by their type, plain values by value, tables of hooks by their length.
    """
    described: dict[str, Any] = {"class": type(module).__qualname__}
    for key, value in vars(module).items():
        if key in _CONTAINERS:
            continue
        if isinstance(value, _PLAIN):
            described[key] = value
        elif isinstance(value, (dict, list, tuple, set)):
            described[key] = (type(value).__name__, len(value))
        else:
            described[key] = type(value).__name__
    return described


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and the scales that a quantised weight cannot be read without."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        state = getattr(parameter, "quant_state", None)
        for nested, holder in (("", state), ("state2.", getattr(state, "state2", None))):
            for key, value in vars(holder).items() if holder is not None else ():
                if isinstance(value, torch.Tensor):
                    yield f"{name}.{nested}{key}", value
    yield from model.named_buffers()


@torch.no_grad()
def checksums(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Per tensor its sums; each device is read from once, not once per tensor."""
    pieces = {name: _piece_sums(tensor) for name, tensor in tensors.items()}
    by_device: dict[torch.device, list[str]] = {}
    for name, sums in pieces.items():
        by_device.setdefault(sums.device, []).append(name)
    read: dict[str, tuple[int, ...]] = {}
    for names in by_device.values():
        values = iter(torch.cat([pieces[name] for name in names]).tolist())
        read |= {name: tuple(islice(values, len(pieces[name]))) for name in names}
    return read


def _piece_sums(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    pieces = min(_PIECES, max(1, flat.numel()))
    whole = flat.numel() // pieces * pieces
    sums = flat[:whole].view(pieces, -1).sum(dim=1, dtype=torch.int64)
    rest = flat[whole:].sum(dtype=torch.int64).view(1)
    return torch.cat([sums, rest])


def _settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    generation = getattr(model, "generation_config", None)
    return {
        "config": model.config.to_json_string(use_diff=False),
        "generation_config": None
        if generation is None
        else generation.to_json_string(use_diff=False),
        "attention": model.config._attn_implementation,  # noqa: SLF001 - the only place it is kept
        "tags": repr(getattr(model, "model_tags", None)),
        "tokenizer.special_tokens": repr(sorted(tokenizer.special_tokens_map.items())),
        "tokenizer.sides": (tokenizer.padding_side, tokenizer.truncation_side),
        "tokenizer.length": len(tokenizer),
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _compare(kind: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in before.keys() - after.keys():
        yield f"{kind} {name} is gone"
    for name in after.keys() - before.keys():
        yield f"{kind} {name} is new"
    for name, was in before.items():
        old, new = was, after.get(name, was)
        if new == old:
            continue
        if isinstance(old, TensorState):
            old, new = vars(old), vars(new)
        if isinstance(old, dict):
            label = name or "(root)"
            yield from (f"{kind} {label}: {text}" for text in _compare("attribute", old, new))
        else:
            yield f"{kind} {name} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"

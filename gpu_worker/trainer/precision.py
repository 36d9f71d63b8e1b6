"""How a job computes on this device: weight type, autocast, attention, recomputation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from models.errors import SetupError, SpecError
from models.spec import JobSpec

Autocast = Literal["no", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_HOPPER, _AMPERE = (9, 0), (8, 0)  # compute capabilities
# Kernels that take packed sequences of any length as they are.
FLASH = frozenset({"flash_attention_3", "flash_attention_2"})


@dataclass(frozen=True)
class Device:
    """What precision may depend on."""

    cuda: bool
    bf16: bool  # in hardware; a card before Ampere only emulates it
    flash: tuple[str, ...] = ()  # installed kernels, best first

    @classmethod
    def current(cls) -> Device:
        if not torch.cuda.is_available():
            return cls(cuda=False, bf16=True)
        capability = torch.cuda.get_device_capability(0)
        flash = []
        # Version 3 runs on later cards too where it is built for them, but is promised for Hopper.
        if capability[0] == _HOPPER[0] and is_flash_attn_3_available():
            flash.append("flash_attention_3")
        if capability >= _AMPERE and is_flash_attn_2_available():
            flash.append("flash_attention_2")
        return cls(
            cuda=True,
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
            flash=tuple(flash),
        )


@dataclass(frozen=True)
class Precision:
    """One job's way to compute.

    `weights` is the type of the base's unquantised weights, and of the products of quantised
    ones; `trainable` the type adapter weights are forced to, None for what the libraries choose.
    `attention` is a wish unless the job named it: not every model has every kernel.
    """

    weights: torch.dtype
    autocast: Autocast
    quantized: bool
    attention: str
    attention_named: bool
    activation_checkpointing: bool
    trainable: torch.dtype | None

    @property
    def words(self) -> str:
        weights = {v: k for k, v in _DTYPES.items()}[self.weights]
        if self.quantized:
            return f"nf4 weights, {weights} compute"
        if self.autocast in ("no", weights):
            return weights
        return f"{weights} weights, {self.autocast} autocast"

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return None if self.autocast == "no" else _DTYPES[self.autocast]


def precision_for(spec: JobSpec, device: Device) -> Precision:
    """What `spec` means on `device`. Raises SpecError, SetupError where it cannot be had."""
    kind = _kind(spec, device)
    if spec.held_as == "full":
        if spec.bf16_pure and not device.bf16:
            raise SpecError(
                "this card has no bfloat16", where="bf16_pure", remedy="leave bf16_pure off"
            )
        weights = torch.bfloat16 if spec.bf16_pure else torch.float32
        autocast: Autocast = "no" if spec.bf16_pure or kind == "fp32" else kind
    else:
        weights = _DTYPES[kind]
        autocast = "no" if kind == "fp32" else kind
    return Precision(
        weights=weights,
        autocast=autocast,
        quantized=spec.held_as == "qlora",
        attention=_attention(spec, device, half=weights != torch.float32 or autocast != "no"),
        attention_named=spec.attention != "auto",
        activation_checkpointing=(
            device.cuda
            if spec.gradient_checkpointing == "auto"
            else spec.gradient_checkpointing == "on"
        ),
        # TRL makes the adapter of a quantised base bfloat16, which fp16's loss scaler cannot
        # unscale; full-size halves would be refused by it too.
        trainable=torch.float32 if autocast == "fp16" else None,
    )


def _kind(spec: JobSpec, device: Device) -> Literal["bf16", "fp16", "fp32"]:
    if spec.precision == "bf16" and not device.bf16:
        raise SpecError(
            "this card has no bfloat16", where="precision", remedy="use fp16, fp32 or auto"
        )
    if spec.precision == "fp16" and not device.cuda:
        raise SpecError(
            "fp16 training needs a CUDA device", where="precision", remedy="use bf16, fp32 or auto"
        )
    if spec.precision != "auto":
        return spec.precision
    if device.cuda:
        return "bf16" if device.bf16 else "fp16"
    # A CPU computes bfloat16 no faster than fp32; a quantised base asks for it all the same.
    return "bf16" if spec.held_as == "qlora" else "fp32"


def _attention(spec: JobSpec, device: Device, *, half: bool) -> str:
    if spec.attention == "auto":
        return device.flash[0] if device.flash and half else "sdpa"
    if spec.attention in FLASH and spec.attention not in device.flash:
        raise SetupError(
            f"{spec.attention} is not installed on this worker",
            where="attention",
            remedy="use attention auto or sdpa, or install the kernel in the worker's environment",
        )
    if spec.attention in FLASH and not half:
        raise SpecError(
            f"{spec.attention} computes in half precision only",
            where="attention",
            remedy="use attention sdpa with precision fp32",
        )
    return spec.attention

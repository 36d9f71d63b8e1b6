"""How fast a job would train on a device: as like jobs did; else by size, as others did there; else
by a rule of thumb, where the device's speed is published. Each says what it rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from celora.planning.memory import Architecture
from models.queries.throughput import Measured, Work
from models.spec import JobSpec

# Dense 16-bit TFLOPS, from the makers' data sheets; V100 and T4 in fp16.
_PEAK_TFLOPS = {
    "b200": 2250,
    "h200": 989,
    "h100": 989,
    "a100": 312,
    "l40s": 362,
    "l40": 181,
    "a40": 150,
    "a10": 125,
    "l4": 121,
    "rtx 4090": 165,
    "rtx 3090": 71,
    "v100": 125,
    "t4": 65,
}
# Of the peak: what training of large language models usually reaches is 0.3 to 0.5; an adapter's
# small layers cost more than their share.
UTILISATION = 0.3


@dataclass(frozen=True, slots=True)
class Pace:
    tokens_per_second: float
    basis: str


def pace_on(
    device: str,
    spec: JobSpec,
    model: Architecture,
    like: Sequence[Measured],
    others: Sequence[Work],
) -> Pace | None:
    """None where neither a job nor a data sheet tells anything."""
    same = next((one for one in like if one.device == device), None)
    if same is not None:
        return _told(same.tokens_per_second, f"in {same.jobs} finished jobs like it")
    size = model.parameters + (0 if spec.held_as == "full" else model.trainable)
    other = next((one for one in others if one.device == device), None)
    if other is not None:
        how = f"by size, from {other.jobs} finished jobs of method {spec.method} on other bases"
        return _told(other.parameter_tokens_per_second / size, how)
    peak = _peak(device)
    if peak is None or spec.precision == "fp32":
        return None
    pace = UTILISATION * peak * 1e12 / (_passes(spec) * size)
    how = f"assumed: {UTILISATION:.0%} of its published {peak:,} TFLOPS, as no job has shown it yet"
    return _told(pace, how)


def _told(tokens_per_second: float, how: str) -> Pace:
    return Pace(tokens_per_second, f"{tokens_per_second:,.0f} tokens/s {how}")


def _peak(device: str) -> int | None:
    """None for what is not in the table, and for a slice of a card."""
    name = device.lower()
    if re.search(r"\bmig\b", name):
        return None
    return next(
        (peak for key, peak in _PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None
    )


def _passes(spec: JobSpec) -> int:
    """Operations for each parameter and token: 2 forward, 2 back to the activations, 2 to the
    weights where they train, 2 to compute activations again, 2 for DPO's reference."""
    return (
        4
        + 2 * (spec.held_as == "full")
        + 2 * (spec.gradient_checkpointing != "off")
        + 2 * (spec.method == "dpo")
    )

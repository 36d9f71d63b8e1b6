"""What measured peaks of like jobs say about the estimate.

Weights, adapter, gradients and optimizer states are exact; what a peak can correct is the
activations. A job's peak is what torch had allocated on its CUDA device: the overhead, which is
CUDA's own memory and what the allocator cannot use, is not in it, and is not corrected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from celora.planning.memory import Architecture, estimate
from models.errors import SpecError
from models.queries.throughput import Peak
from models.spec import JobSpec, stored_spec

# Where any of these differs, trained parameters, types or what is kept for the backward pass do.
_ALIKE = (
    "dpo_base",
    "rank",
    "target_modules",
    "dropout",
    "bf16_pure",
    "optimizer",
    "precision",
    "gradient_checkpointing",
    "attention",
)
_FIXED = frozenset({"weights", "adapter", "gradients", "optimizer", "casts", "logits", "reference"})
# Beyond these the two are no like jobs, whatever their settings say.
_LEAST, _MOST = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Correction:
    """`factor` is what the estimated activations are multiplied with."""

    factor: float = 1.0
    jobs: int = 0  # whose peaks it is the median of


def correction_from(spec: JobSpec, model: Architecture, peaks: Iterable[Peak]) -> Correction:
    """From the peaks of jobs that differ in batch and row length at most."""
    factors = [
        factor
        for peak in peaks
        if (factor := _factor(spec, model, peak)) is not None and _LEAST <= factor <= _MOST
    ]
    return Correction(median(factors), len(factors)) if factors else Correction()


def _factor(spec: JobSpec, model: Architecture, peak: Peak) -> float | None:
    """Measured activations by estimated ones; None for a job that is not alike."""
    try:
        theirs = stored_spec(peak.spec)
    except SpecError:  # another version's
        return None
    if any(getattr(theirs, name) != getattr(spec, name) for name in _ALIKE):
        return None
    longest = peak.verdict.get("lengths", {}).get("max", theirs.max_sequence_length)
    packed = peak.verdict.get("packed", False)
    row_tokens = theirs.max_sequence_length if packed else min(longest, theirs.max_sequence_length)
    planned = estimate(theirs, model, micro_batch=peak.batch_size, row_tokens=row_tokens)
    # Of the low figures: a paged optimizer's states are not in torch's count.
    fixed = sum(part.low for part in planned.parts if part.name in _FIXED)
    activations = next(part.expected for part in planned.parts if part.name == "activations")
    return (peak.peak_bytes - fixed) / activations

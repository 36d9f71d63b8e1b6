"""How many optimizer steps a run takes, by the Hugging Face Trainer's own arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Steps:
    per_epoch: int
    total: int


def optimizer_steps(
    sequences: int,
    *,
    batch_size: int,
    gradient_accumulation: int,
    epochs: float,
    max_steps: int | None,
) -> Steps:
    """Steps for `sequences` rows (or packs) on one device.

    As Trainer.set_initial_training_values (transformers 5.23): the last micro-batch may be short
    (drop_last is off), and so may the last accumulation of an epoch, which still makes a step.
    """
    micro_batches = math.ceil(sequences / batch_size)
    per_epoch = max(math.ceil(micro_batches / gradient_accumulation), 1)
    return Steps(per_epoch, max_steps or math.ceil(epochs * per_epoch))

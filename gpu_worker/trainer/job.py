"""One training job in this process: what it works with, and how it is cut into steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from gpu_worker.protocol import Run
from gpu_worker.trainer.base_model import Base
from gpu_worker.trainer.channel import Channel
from gpu_worker.trainer.precision import FLASH, Precision
from models.errors import NothingToTrainError
from models.spec import JobSpec


@dataclass(frozen=True)
class Job:
    """What a run has to work with."""

    run: Run
    spec: JobSpec
    precision: Precision
    base: Base
    channel: Channel
    warm: bool


@dataclass(frozen=True)
class Size:
    """How the data is cut into steps."""

    batch_size: int
    gradient_accumulation: int
    total_steps: int
    warmup_steps: int
    packed: bool


@dataclass(frozen=True)
class Parameters:
    trainable: int
    total: int


def size_of(job: Job, data: Dataset) -> Size:
    """Steps in all and rows per step: as asked, but for packs that no kernel takes side by side."""
    batch, accumulation = job.run.batch_size, job.run.gradient_accumulation
    packed = "seq_lengths" in data.column_names
    if packed and batch > 1 and job.base.attention not in FLASH:
        # The collator lays a batch of packs end to end in one row. A kernel for variable lengths
        # takes that as it is; any other attends over the whole row's square.
        accumulation, batch = accumulation * batch, 1
        job.channel.log(
            f"packed rows without variable-length attention: micro-batch 1, accumulation "
            f"{accumulation}, the same effective batch"
        )
    per_epoch = max(1, math.ceil(math.ceil(len(data) / batch) / accumulation))
    total = job.spec.max_steps or math.ceil(job.spec.epochs * per_epoch)
    return Size(batch, accumulation, total, job.spec.resolved_warmup_steps(total), packed)


def trainable_parameters(job: Job, model: Any) -> Parameters:
    """Count the parameters, a quantised weight's two to the byte, and settle the type of those
    that train. Raises NothingToTrainError."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else math.prod(state.shape)
        total += count
        if parameter.requires_grad:
            trainable += count
            if job.precision.trainable is not None:
                parameter.data = parameter.data.to(job.precision.trainable)
    if trainable == 0:
        raise NothingToTrainError(
            "no parameter of the model takes gradients: the run would log losses and learn nothing",
            where=f"method {job.spec.method}",
            remedy="name layers that exist in target_modules, or use auto",
        )
    return Parameters(trainable, total)

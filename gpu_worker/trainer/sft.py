"""The recipe: one fine-tuning job, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import (  # type: ignore[import-untyped] # it ships none
    AcceleratorState,
    GradientState,
)
from datasets import Dataset

from gpu_worker.protocol import Started, Trained
from gpu_worker.trainer.adapter import begin_with, lora_config
from gpu_worker.trainer.arguments import dpo_config, sft_config
from gpu_worker.trainer.callbacks import Progress
from gpu_worker.trainer.checkpoint import (
    load_weights,
    open_checkpoint,
    require_finite,
)
from gpu_worker.trainer.failures import cause
from gpu_worker.trainer.job import Job, Size, size_of, trainable_parameters
from gpu_worker.trainer.job_trainer import Collator, JobRecords, JobTrainer
from gpu_worker.trainer.measure import held_out_figures
from gpu_worker.trainer.outcome import result_of, save
from gpu_worker.trainer.preference_trainer import PairCollator, PreferenceTrainer, keep_reference
from gpu_worker.trainer.preferences import held_out_rewards
from models.errors import NonFiniteLossError, SetupError


@dataclass(frozen=True)
class Stopped:
    """The run ended early because it was asked to."""

    reason: str
    step: int
    checkpoint_step: int | None


def train(
    job: Job, progress_made: Callable[[Progress], None], keep: Callable[[Any], None]
) -> Trained | Stopped:
    """Train, save, and tell what came of it.

    `progress_made` is given the run's records before the first step, `keep` the model as soon as
    it carries an adapter, so that the caller can take it off again whatever happens.
    """
    run, spec, channel = job.run, job.spec, job.channel
    began = time.perf_counter()
    resumed = None if run.resume_from is None else open_checkpoint(Path(run.resume_from))

    # The data was tokenised, masked and packed by preprocessing; it is mapped, not read.
    data = open_data(Path(run.prepared_path) / "train.arrow")
    size = size_of(job, data)

    # What earlier jobs leave in the process: accelerate keeps one state, which refuses another
    # precision than the first job's, and CUDA the highest peak of all.
    AcceleratorState._reset_state()  # noqa: SLF001 - accelerate offers no other way
    GradientState._reset_state()  # noqa: SLF001 - as above
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    progress = Progress(
        spec,
        channel,
        total_steps=size.total_steps,
        resumed=resumed,
        device=job.base.model.device,
        held_out=partial(_held_out, job),
    )
    progress_made(progress)

    # TRL seeds every random generator with `seed` before it makes the adapter's first weights.
    trainer = _trainer(job, size, data, progress)
    model: Any = trainer.model
    keep(model)
    parameters = trainable_parameters(job, model)
    if run.start_adapter_path is not None and (resumed is None or spec.method == "dpo"):
        begin_with(model, Path(run.start_adapter_path))
        if spec.method == "dpo":
            keep_reference(model)  # of a resumed run too, whose own weights are loaded later
    channel.send(
        Started(
            start_step=progress.start_step,
            total_steps=size.total_steps,
            trainable_parameters=parameters.trainable,
            total_parameters=parameters.total,
            precision=job.precision.words,
            attention=job.base.attention,
            optimizer=spec.resolved_optimizer,
        )
    )
    channel.raise_if_stopped()

    ended_at = None
    try:
        if resumed is None or resumed.step < size.total_steps:
            trainer.train(resume_from_checkpoint=run.resume_from)
            progress.drain()
        else:  # saved after its last step: Trainer would do one more
            load_weights(model, resumed.path)
    except NonFiniteLossError as error:
        ended_at = trainer.last_checkpoint or resumed
        if spec.on_non_finite == "fail" or ended_at is None:
            raise
        # The job asked to end at the last good checkpoint instead.
        channel.log(f"{error.where}: {error.what}: going back to step {ended_at.step}", "warn")
        load_weights(model, ended_at.path)
    if progress.stop_reason is not None:
        saved = trainer.last_checkpoint
        return Stopped(progress.stop_reason, progress.step, None if saved is None else saved.step)

    require_finite(model, progress.step)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    job.base.end_training()
    seconds = time.perf_counter() - began
    result = result_of(job, size, parameters, progress, ended_at) | {"seconds": seconds}
    return save(job, model, result)


def open_data(path: Path) -> Dataset:
    """Map a prepared Arrow stream. Raises SetupError where it is missing or broken."""
    try:
        return Dataset.from_file(str(path))
    except (OSError, ValueError) as error:
        raise SetupError(
            f"the prepared data cannot be read: {cause(error)}",
            where=str(path),
            remedy="retry the job; if it fails again, remove its prepared data, which is then "
            "made anew",
        ) from error


def _trainer(job: Job, size: Size, data: Dataset, progress: Progress) -> JobRecords:
    """TRL's trainer for the method, on a base that carries the adapter from then on."""
    run, spec, base = job.run, job.spec, job.base
    full = spec.method == "full"
    pad = base.tokenizer.pad_token_id
    shared: dict[str, Any] = {
        "model": base.model,
        "train_dataset": data,
        "processing_class": base.tokenizer,
        "peft_config": None if full else lora_config(spec, base.model),
        "progress": progress,
        "channel": job.channel,
        "checkpoints": Path(run.output_path) / "checkpoints",
        "base_name": run.base_name,
        "base_revision": run.base_revision,
    }
    if spec.method == "dpo":
        return PreferenceTrainer(
            args=dpo_config(job, size), data_collator=PairCollator(pad), **shared
        )
    collator = Collator(pad_token_id=pad, padding_free=size.packed)
    return JobTrainer(args=sft_config(job, size), data_collator=collator, **shared)


def _held_out(job: Job, model: Any) -> dict[str, float]:
    path = Path(job.run.prepared_path) / "eval.arrow"
    autocast = job.precision.autocast_dtype
    if job.spec.method == "dpo":
        return held_out_rewards(model, path, job.spec.dpo_beta, autocast=autocast)
    return held_out_figures(job.base.model, path, autocast=autocast)

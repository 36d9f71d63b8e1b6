"""The recipe: one supervised fine-tuning job, from top to bottom."""

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
from trl.trainer.sft_config import SFTConfig

from gpu_worker.protocol import Started, Trained
from gpu_worker.trainer.adapter import begin_with, lora_config
from gpu_worker.trainer.callbacks import Progress
from gpu_worker.trainer.checkpoint import (
    load_weights,
    open_checkpoint,
    require_finite,
)
from gpu_worker.trainer.failures import cause
from gpu_worker.trainer.job import Job, Size, size_of, trainable_parameters
from gpu_worker.trainer.job_trainer import Collator, JobTrainer
from gpu_worker.trainer.measure import held_out_loss
from gpu_worker.trainer.outcome import result_of, save
from models.errors import NonFiniteLossError, SetupError

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# torch's fused AdamW is the same algorithm in one kernel, and what TRL takes by default.
_OPTIMIZERS = {"adamw_torch": "adamw_torch_fused"}


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
        held_out_loss=partial(_held_out_loss, job),
    )
    progress_made(progress)

    # TRL seeds every random generator with `seed` before it makes the adapter's first weights.
    trainer = JobTrainer(
        model=job.base.model,
        args=sft_config(job, size),
        train_dataset=data,
        processing_class=job.base.tokenizer,
        peft_config=None if spec.method == "full" else lora_config(spec, job.base.model),
        data_collator=Collator(
            pad_token_id=job.base.tokenizer.pad_token_id, padding_free=size.packed
        ),
        progress=progress,
        channel=channel,
        checkpoints=Path(run.output_path) / "checkpoints",
        base_name=run.base_name,
        base_revision=run.base_revision,
    )
    model: Any = trainer.model
    keep(model)
    parameters = trainable_parameters(job, model)
    if resumed is None and run.start_adapter_path is not None:
        begin_with(model, Path(run.start_adapter_path))
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


def sft_config(job: Job, size: Size) -> SFTConfig:
    """Every argument of TRL that matters, from the spec by hand; the rest is switched off."""
    run, spec, precision = job.run, job.spec, job.precision
    cuda = torch.cuda.is_available()
    return SFTConfig(
        # The run
        output_dir=run.output_path,
        per_device_train_batch_size=size.batch_size,
        gradient_accumulation_steps=size.gradient_accumulation,
        max_steps=size.total_steps,
        seed=spec.seed,
        data_seed=spec.seed,
        # The optimisation
        learning_rate=spec.resolved_learning_rate,
        lr_scheduler_type=_SCHEDULES[spec.schedule],
        warmup_steps=size.warmup_steps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.gradient_clip,
        optim=_OPTIMIZERS.get(spec.resolved_optimizer, spec.resolved_optimizer),
        # The device
        use_cpu=not cuda,
        bf16=precision.autocast == "bf16",
        fp16=precision.autocast == "fp16",
        activation_checkpointing=precision.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        # The data: prepared, so nothing is tokenised, truncated, masked, shuffled or packed here
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        completion_only_loss=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        # The records: ours, see callbacks and checkpoint
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
        push_to_hub=False,
    )


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


def _held_out_loss(job: Job) -> float | None:
    return held_out_loss(
        job.base.model,
        Path(job.run.prepared_path) / "eval.arrow",
        autocast=job.precision.autocast_dtype,
    )

"""What a finished run leaves: its result for the record, and its weights with their card."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from gpu_worker.protocol import Activity, Trained
from gpu_worker.trainer.callbacks import Progress
from gpu_worker.trainer.card import write_card
from gpu_worker.trainer.checkpoint import Checkpoint, durable_folder, folder_size, save_weights
from gpu_worker.trainer.job import Job, Parameters, Size
from gpu_worker.trainer.versions import device_name, versions


def result_of(
    job: Job,
    size: Size,
    parameters: Parameters,
    progress: Progress,
    ended_at: Checkpoint | None,
) -> dict[str, Any]:
    """What goes on record: how it went, and all that is needed to do it again."""
    losses = progress.losses if ended_at is None else ended_at.losses
    return {
        "steps": progress.step if ended_at is None else ended_at.step,
        "trained_tokens": (
            progress.trained_tokens if ended_at is None else ended_at.trained_tokens
        ),
        "epoch": progress.latest.get("epoch"),
        "train_loss": math.fsum(losses) / len(losses),
        "eval_loss": progress.latest.get("eval_loss"),
        "peak_memory_bytes": progress.memory_bytes(),
        "device": device_name(),
        "precision": job.precision.words,
        "attention": job.base.attention,
        "optimizer": job.spec.resolved_optimizer,
        "activation_checkpointing": job.precision.activation_checkpointing,
        "batch_size": size.batch_size,
        "gradient_accumulation": size.gradient_accumulation,
        "warmup_steps": size.warmup_steps,
        "packed": size.packed,
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "seed": job.spec.seed,
        "base_revision": job.run.base_revision,
        "versions": versions(),
        "warm": job.warm,
        "began_with_adapter_of": job.spec.after if job.spec.start_from_adapter else None,
        "resumed_at_step": progress.start_step,
        "ended_at_checkpoint": None if ended_at is None else ended_at.step,
        "command_received": job.run.received_at,
        "first_step_began": progress.first_step_began,
        "last_step_ended": progress.last_step_ended,
    }


def save(job: Job, model: Any, result: dict[str, Any]) -> Trained:
    """Write the adapter (or the whole model) with its card, synced, under its final name."""
    run, full = job.run, job.spec.method == "full"
    target = Path(run.output_path) / ("model" if full else "adapter")
    if full:
        job.channel.send(Activity(what="saving the model"))
    with durable_folder(target) as folder:
        if full:
            model.save_pretrained(folder)
            job.base.tokenizer.save_pretrained(folder)
        else:
            save_weights(model, folder, base_name=run.base_name, base_revision=run.base_revision)
        write_card(folder, run, job.spec, result)
    return Trained(
        path=str(target),
        kind="model" if full else "adapter",
        size_bytes=folder_size(target),
        digest=weights_digest(target),
        step=result["steps"],
        trained_tokens=result["trained_tokens"],
        result=result,
    )


def weights_digest(folder: Path) -> str:
    """sha256 over the weights files in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()

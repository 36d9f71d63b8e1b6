"""Checkpoints that are whole or not there, and from which a run goes on to the bit.

A folder is written beside its final place, synced, and renamed. `progress.json` is written last; it
lists every file with its size, so a torn copy is told from a whole one wherever it comes from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_model, save_model

from gpu_worker.trainer.adapter import load_adapter_weights, save_adapter
from models import disk
from models.errors import NonFiniteLossError, TrainingError

_PROGRESS = "progress.json"
_MODEL = "model.safetensors"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on this machine's disk."""

    path: Path
    step: int
    trained_tokens: int
    losses: tuple[float, ...]  # of the last steps, oldest first
    size_bytes: int


@contextmanager
def durable_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `target` when the block ends, synced, or not at all.

    Raises SetupError where the disk is full; the room that the half took is free again then.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if disk.is_full(error):
            raise disk.full(error, target) from error
        raise


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def save_checkpoint(
    trainer: Any,
    folder: Path,
    *,
    trained_tokens: int,
    losses: Sequence[float],
    base_name: str,
    base_revision: str,
) -> Checkpoint:
    """Write `folder`/step-N: weights, optimizer, schedule, loss scaler, random state, position.

    Trainer's own pieces are used, but not its `_save_checkpoint`: that leaves a torn folder when
    it is killed, rotates by itself, and keeps a pickle of its arguments.
    """
    step = int(trainer.state.global_step)
    require_finite(trainer.model, step)
    target = folder / f"step-{step}"
    with durable_folder(target) as partial:
        save_weights(trainer.model, partial, base_name=base_name, base_revision=base_revision)
        trainer._save_optimizer_and_scheduler(str(partial))  # noqa: SLF001 - as its own saving does
        trainer._save_scaler(str(partial))  # noqa: SLF001 - as above
        trainer._save_rng_state(str(partial))  # noqa: SLF001 - as above
        trainer.state.save_to_json(str(partial / _STATE))
        files = {path.name: path.stat().st_size for path in partial.iterdir()}
        progress = {
            "step": step,
            "trained_tokens": trained_tokens,
            "losses": list(losses),
            "files": files,
        }
        (partial / _PROGRESS).write_text(json.dumps(progress, indent=2) + "\n")
    return Checkpoint(target, step, trained_tokens, tuple(losses), folder_size(target))


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint's own list of files. Raises TrainingError if any is missing."""
    try:
        progress = json.loads((path / _PROGRESS).read_text())
        torn = [
            name
            for name, size in progress["files"].items()
            if not (path / name).is_file() or (path / name).stat().st_size != size
        ]
        found = Checkpoint(
            path,
            int(progress["step"]),
            int(progress["trained_tokens"]),
            tuple(map(float, progress["losses"])),
            folder_size(path),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"the checkpoint cannot be read: {error}", where=str(path), remedy=_REMEDY
        ) from error
    if torn:
        raise TrainingError(
            f"the checkpoint is not whole: {', '.join(torn)}", where=str(path), remedy=_REMEDY
        )
    return found


def save_weights(model: Any, folder: Path, *, base_name: str, base_revision: str) -> None:
    """The trained part: the adapter, or the whole model."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder, base_name=base_name, base_revision=base_revision)
    else:
        save_model(model, str(folder / _MODEL))


def load_weights(model: Any, folder: Path) -> None:
    """Put the saved weights into `model`, in place."""
    if isinstance(model, PeftModel):
        load_adapter_weights(model, folder)
    else:
        load_model(model, folder / _MODEL, device="cpu")


def require_finite(model: Any, step: int) -> None:
    """Raise NonFiniteLossError if a trained weight is NaN or infinite.

    A loss shows that only in the step after, when the bad weights would be saved already.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not torch.stack([p.detach().isfinite().all() for p in trained]).all():
        raise NonFiniteLossError(
            "the weights became NaN or infinite",
            where=f"step {step}",
            remedy="a lower learning_rate, or precision bf16 or fp32",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMEDY = "remove this checkpoint; the job then resumes from the one before it"

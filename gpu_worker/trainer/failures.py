"""From an exception to the error that is stored with the job."""

from __future__ import annotations

import traceback

import torch

from gpu_worker.protocol import Failed
from models import disk
from models.errors import CeloraError, DeviceMemoryError, TrainingError

_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)
_CAUSE_LENGTH = 300  # characters of a library's own words; the whole text is in the log


def failed(error: BaseException, *, step: int | None, in_step: bool) -> Failed:
    """The message for `error`.

    `in_step` tells that training steps were running: only there does a smaller micro-batch help
    against exhausted memory.
    """
    explained = explain(error, step=step)
    foreign = error is not explained or error.__cause__ is not None
    return Failed(
        error=explained.record(),
        step=step,
        out_of_memory=in_step and isinstance(explained, DeviceMemoryError),
        traceback="".join(traceback.format_exception(error)) if foreign else None,
    )


def explain(error: BaseException, *, step: int | None = None) -> CeloraError:
    """`error` itself if it is ours, else ours with a short cause."""
    if isinstance(error, CeloraError):
        return error
    where = None if step is None else f"step {step}"
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"memory ran out: {cause(error)}",
            where=where,
            remedy="a smaller batch_size with more gradient_accumulation, a shorter "
            "max_sequence_length, gradient_checkpointing on, or method qlora",
        )
    if disk.is_full(error):
        return disk.full(error, where or "the trainer's disk")
    return TrainingError(
        f"training failed: {cause(error)}",
        where=where,
        remedy="the job's log holds the whole traceback",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """True for device and host memory alike."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS)


def cause(error: BaseException) -> str:
    """A library's own words for it, in one line."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text[:_CAUSE_LENGTH]}"

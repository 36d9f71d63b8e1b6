"""From a library's exception to what a person reads."""

from __future__ import annotations

import errno

import pytest
import torch

from gpu_worker.trainer.failures import explain, failed
from models.errors import DeviceMemoryError, SetupError, SpecError, TrainingError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_exhausted_memory_allows_a_smaller_try_only_in_a_step(error: BaseException) -> None:
    assert isinstance(explain(error), DeviceMemoryError)
    assert failed(error, step=3, in_step=True).out_of_memory
    assert not failed(error, step=None, in_step=False).out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_said(error: Exception) -> None:
    explained = explain(error)
    assert isinstance(explained, SetupError)
    assert "disk" in explained.what


def test_anything_else_is_one_short_line_with_the_traceback_apart() -> None:
    with pytest.raises(KeyError) as caught:
        dict[str, int]()["x" * 5000 + "\nsecond line"]
    message = failed(caught.value, step=12, in_step=True)
    assert message.error["code"] == TrainingError.code
    assert message.error["where"] == "step 12"
    assert len(message.error["message"]) < 400
    assert "\n" not in message.error["message"]
    assert message.traceback is not None
    assert "test_trainer_failures.py" in message.traceback
    assert not message.out_of_memory


def test_our_own_errors_stay_as_they_are() -> None:
    error = SpecError("no such layer", where="target_modules", remedy="use auto")
    assert explain(error) is error
    message = failed(error, step=None, in_step=False)
    assert message.error == error.record()
    assert message.traceback is None, "it says nothing that the sentence does not"

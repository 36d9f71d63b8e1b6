"""Where an export finds room for a second model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file

from gpu_worker.trainer.channel import Channel
from gpu_worker.trainer.export import _bfloat16_bytes
from gpu_worker.trainer.main import Process
from models.errors import DeviceMemoryError

pytestmark = pytest.mark.torch


def test_a_model_that_no_memory_holds_is_refused_before_it_is_loaded() -> None:
    process = Process(cast("Channel", None))  # which says nothing here
    with pytest.raises(DeviceMemoryError, match=r"takes .* GB .* GB of memory free") as told:
        process._place_for(10**16 * 10 // 13)
    assert "export it as adapter" in str(told.value)
    assert process._place_for(1) == ("cuda:0" if torch.cuda.is_available() else "cpu")


def test_its_size_is_that_of_bfloat16_whatever_the_file_holds(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16):
        save_file({"a": torch.ones(3, 4, dtype=dtype), "b": torch.ones(5)}, tmp_path / "m")
        assert _bfloat16_bytes(tmp_path / "m") == 2 * (12 + 5)

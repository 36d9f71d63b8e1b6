"""`make gpu-check` without a device, and its rehearsal on a CPU slot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_device_it_says_so_and_exits_zero() -> None:
    done = _gpu_check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "no CUDA device" in done.stdout


@pytest.mark.slow
@pytest.mark.torch
def test_the_rehearsal_plays_the_whole_course() -> None:
    done = _gpu_check("--rehearse")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("LoRA, packed", "QLoRA", "attention kernel", "warm gap", "bare TRL script"):
        assert line in done.stdout
    assert "**failed**" not in done.stdout

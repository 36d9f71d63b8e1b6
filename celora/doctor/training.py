"""What training needs: torch and its companions, CUDA devices, the cache of base models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from celora.doctor.check import Check, Verdict, can_write
from gpu_worker.devices import nvml

_IMPORT_SECONDS = 180  # a cold disk takes its time
_GB = 10**9

# In a process of its own: the command stays light, and a broken library cannot end it.
_PROBE = """
import importlib, json, sys
found = {}
for name in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"):
    try:
        found[name] = {"version": importlib.import_module(name).__version__}
    except BaseException as error:
        found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
if "version" in found["torch"]:
    import torch
    found["cuda"] = {
        "built": torch.version.cuda, "available": torch.cuda.is_available(),
        "devices": torch.cuda.device_count(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    }
print("\\n" + json.dumps(found))
"""


def torch() -> Iterator[Check]:
    found = _probe()
    if "error" in found:
        yield Check("torch", Verdict.FAIL, found["error"], "pip install 'celora[train]' again")
        return
    broken = {
        name: found[name]["error"]
        for name in ("torch", "transformers", "peft", "trl", "accelerate")
        if "error" in found[name]
    }
    if "torch" in broken and "ModuleNotFoundError" in broken["torch"]:
        yield Check(
            "torch",
            Verdict.WARN,
            "not installed: this machine can submit and prepare jobs, but not train",
            "pip install 'celora[train]'",
        )
        return
    for name, error in broken.items():
        yield Check(name, Verdict.FAIL, error, "pip install 'celora[train]' again")
    if not broken:
        versions = ("torch", "transformers", "trl", "peft")
        said = ", ".join(f"{name} {found[name]['version']}" for name in versions)
        yield Check("torch", Verdict.OK, said)
    if "error" in found["bitsandbytes"]:
        yield Check(
            "bitsandbytes",
            Verdict.WARN,
            f"{found['bitsandbytes']['error']}; method qlora does not work",
            "pip install bitsandbytes",
        )
    else:
        yield Check("bitsandbytes", Verdict.OK, found["bitsandbytes"]["version"])


def devices() -> Iterator[Check]:
    with nvml() as library:
        if library is None:
            yield Check(
                "devices",
                Verdict.WARN,
                "no NVIDIA driver: jobs train on CPU slots (`--devices cpu:1`), which is slow",
                "on a machine with NVIDIA cards, install their driver and look at nvidia-smi",
            )
            return
        driver = str(library.nvmlSystemGetDriverVersion())
        cards = [_card(library, number) for number in range(library.nvmlDeviceGetCount())]
    yield Check("driver", Verdict.OK, f"NVIDIA {driver}")
    for number, (name, total, used) in enumerate(cards):
        said = f"{name}, {total / _GB:.0f} GB, {used / _GB:.1f} in use"
        yield Check(f"cuda:{number}", Verdict.OK, said)
    cuda = _probe().get("cuda")
    if cuda is None:
        return
    if cards and not cuda["available"]:
        why = "is built for the CPU alone" if cuda["built"] is None else "cannot use the driver"
        yield Check(
            "cuda",
            Verdict.FAIL,
            f"there are cards, but torch {why} (CUDA {cuda['built']}, driver {driver})",
            "install the torch build for this driver, see pytorch.org/get-started",
        )
    elif cards:
        kind = "bf16" if cuda["bf16"] else "fp16 (older than Ampere)"
        yield Check("cuda", Verdict.OK, f"CUDA {cuda['built']}, computes in {kind}")


def model_cache() -> Iterator[Check]:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    place = Path(os.environ.get("HF_HOME", default)).expanduser()
    models = list((place / "hub").glob("models--*"))
    if can_write(place):
        yield Check("model cache", Verdict.OK, f"{len(models)} models in {place}")
    else:
        yield Check(
            "model cache",
            Verdict.FAIL,
            f"{place} may not be written: base models cannot be fetched",
            "set HF_HOME to a folder of your own",
        )


def _card(library: Any, number: int) -> tuple[str, int, int]:
    handle = library.nvmlDeviceGetHandleByIndex(number)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    return str(library.nvmlDeviceGetName(handle)), int(memory.total), int(memory.used)


@lru_cache(maxsize=1)
def _probe() -> dict[str, Any]:
    """What a fresh Python says about the training libraries; {"error": …} when it says nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing it takes over {_IMPORT_SECONDS} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"importing it ends the process ({done.returncode}): {done.stderr[-300:]}"}
    return found

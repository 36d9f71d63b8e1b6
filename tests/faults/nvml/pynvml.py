"""NVML as a process meets it, without a card: one device, told by the file that NVML_STATE names.

It stands where the driver's library would; all of ours above it is the product's own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

UUID = "GPU-00000000-0000-4000-8000-000000000001"
nvmlMemory_v2 = 2  # noqa: N816 (NVML's name, as all below)


class NVMLError(Exception):
    """What the driver answers when it does not."""


def nvmlInit() -> None:  # noqa: N802
    pass


def nvmlShutdown() -> None:  # noqa: N802
    pass


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return 1


def nvmlDeviceGetHandleByIndex(_index: int) -> str:  # noqa: N802
    return UUID


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    return uuid


def nvmlDeviceGetMigMode(_handle: str) -> tuple[int, int]:  # noqa: N802
    raise NVMLError("not supported")


def nvmlDeviceGetUUID(handle: str) -> str:  # noqa: N802
    return handle


def nvmlDeviceGetName(_handle: str) -> str:  # noqa: N802
    return "a card for tests"


def nvmlDeviceGetMemoryInfo(_handle: str, version: int | None = None) -> Any:  # noqa: ARG001, N802
    used = sum(process.usedGpuMemory for process in nvmlDeviceGetComputeRunningProcesses(""))
    return SimpleNamespace(total=80 << 30, used=used)


def nvmlDeviceGetComputeRunningProcesses(_handle: str) -> list[Any]:  # noqa: N802
    """As the file says: pid → bytes, of processes that live."""
    state = json.loads(Path(os.environ["NVML_STATE"]).read_text())
    return [
        SimpleNamespace(pid=int(pid), usedGpuMemory=taken)
        for pid, taken in state.items()
        if Path(f"/proc/{pid}").exists()
    ]


def __getattr__(name: str) -> Any:
    """This card tells nothing more: neither its power nor its temperature."""

    def refuse(*_: object) -> Any:
        raise NVMLError("not supported")

    if name.startswith("nvmlDevice"):
        return refuse
    if name.startswith("NVML_"):
        return 0
    raise AttributeError(name)

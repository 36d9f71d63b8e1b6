"""Which devices this machine trains on: CUDA devices found through NVML, or slots of CPU cores.

No torch here: a process that imports torch has chosen its devices already.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import InputError, SetupError
from models.settings import settings

# A device in this variable makes a Celery worker the worker of that device.
DEVICE_VARIABLE = "CELORA_DEVICE"

_REMEDY = "use `all`, `cuda:0,cuda:2` (numbers as in nvidia-smi) or `cpu:2` (slots)"


@dataclass(frozen=True)
class Device:
    """One device, or one slot of CPU cores, that runs one trainer at a time."""

    index: int  # NVML's number; MIG slices: 1000 × (number + 1) + slice; CPU slots from 0
    uuid: str
    kind: Literal["cuda", "cpu"]
    model: str
    memory_bytes: int
    cores: tuple[int, ...] = ()  # CPU slots: the cores its trainer runs on

    def environment(self) -> dict[str, str]:
        """What pins a process to this device; it must be set before the process starts."""
        if self.kind == "cuda":
            return {"CUDA_VISIBLE_DEVICES": self.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        threads = str(max(1, len(self.cores)))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        # Threads that spin while they wait take three times the CPU time where anything else
        # runs on the cores, and the database and the workers do.
        waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
        return {"CUDA_VISIBLE_DEVICES": ""} | waiting | dict.fromkeys(names, threads)

    def encode(self) -> str:
        return json.dumps(asdict(self))


def decode(text: str) -> Device:
    fields = json.loads(text)
    return Device(**fields | {"cores": tuple(fields["cores"])})


def own_device() -> Device | None:
    """The device this worker was started for; none in a worker that trains nothing."""
    text = os.environ.get(DEVICE_VARIABLE)
    return decode(text) if text else None


def boot_id() -> str:
    """New at every boot of this machine: a pid of another boot means nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def discover(wanted: str) -> list[Device]:
    """The devices that `wanted` names: `all`, `cuda:0,cuda:2` or `cpu:N`.

    Only devices in CUDA_VISIBLE_DEVICES count where that is set. Raises InputError for text that
    is none of these, SetupError for a device that is not there.
    """
    if slots := re.fullmatch(r"cpu:(\d{1,3})", wanted):
        return _cpu_slots(int(slots[1]))
    indexes = None if wanted == "all" else _card_numbers(wanted)
    found = _cuda_devices()
    if indexes is None:
        if not found:
            raise SetupError(
                "no CUDA device was found",
                remedy="check nvidia-smi and CUDA_VISIBLE_DEVICES, or use `--devices cpu:1`",
            )
        return found
    by_index = {device.index: device for device in found}
    for index in indexes:
        if index not in by_index:
            there = ", ".join(f"cuda:{number}" for number in by_index) or "none"
            raise SetupError(
                f"there is no CUDA device {index} (found: {there})",
                remedy="check nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
    return [by_index[index] for index in indexes]


def _card_numbers(wanted: str) -> list[int]:
    numbers = []
    for part in wanted.split(","):
        named = re.fullmatch(r"cuda:(\d{1,6})", part.strip())
        if named is None:
            raise InputError(f"{part!r} names no device", where="--devices", remedy=_REMEDY)
        numbers.append(int(named[1]))
    return list(dict.fromkeys(numbers))


def _cpu_slots(count: int) -> list[Device]:
    """The cores this process may use, in `count` parts; more slots than cores share them."""
    if count < 1:
        raise InputError("at least one slot", where="--devices", remedy=_REMEDY)
    import psutil

    cores = sorted(os.sched_getaffinity(0))
    memory = int(psutil.virtual_memory().total) // count
    slots = []
    for index in range(count):
        own = cores[index * len(cores) // count : (index + 1) * len(cores) // count]
        own = own or [cores[index % len(cores)]]
        threads = f"{len(own)} thread{'s' if len(own) > 1 else ''}"
        uuid = f"cpu-{settings().resolved_host}-{index}"
        slots.append(Device(index, uuid, "cpu", f"cpu ({threads})", memory, tuple(own)))
    return slots


def _cuda_devices() -> list[Device]:
    with nvml() as library:
        if library is None:
            return []
        devices = [
            device
            for number in range(library.nvmlDeviceGetCount())
            for device in _of_card(library, number)
        ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [device for device in devices if _is_visible(device, names)]


def _is_visible(device: Device, names: list[str]) -> bool:
    # CUDA takes a number, or the beginning of a UUID.
    return any(
        device.index == int(name) if name.isdigit() else device.uuid.startswith(name)
        for name in names
    )


def _of_card(library: Any, number: int) -> list[Device]:
    """The card itself, or its MIG slices where it is cut into some."""
    card = library.nvmlDeviceGetHandleByIndex(number)
    slices = _mig_slices(library, card)
    if not slices:
        return [_device(library, card, number)]
    return [_device(library, part, 1000 * (number + 1) + at) for at, part in slices]


def _mig_slices(library: Any, card: Any) -> list[tuple[int, Any]]:
    try:
        current, _pending = library.nvmlDeviceGetMigMode(card)
        if not current:
            return []
        count = library.nvmlDeviceGetMaxMigDeviceCount(card)
    except library.NVMLError:
        return []  # a card that knows no MIG
    slices = []
    for at in range(count):
        try:
            slices.append((at, library.nvmlDeviceGetMigDeviceHandleByIndex(card, at)))
        except library.NVMLError:
            continue  # an empty place
    return slices


def _device(library: Any, handle: Any, index: int) -> Device:
    memory = int(library.nvmlDeviceGetMemoryInfo(handle).total)
    uuid, name = library.nvmlDeviceGetUUID(handle), library.nvmlDeviceGetName(handle)
    return Device(index, str(uuid), "cuda", str(name), memory)


@contextmanager
def nvml() -> Iterator[Any]:
    """The NVML library, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()

"""What a device is doing right now: utilisation, memory, temperature, power.

A CUDA device is asked through NVML; for a slot of CPU cores the trainer's processes are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from gpu_worker import processes
from gpu_worker.devices import Device, nvml


@dataclass(frozen=True, slots=True)
class Sample:
    """What the device does not tell is None (a slice of a MIG card tells only its memory)."""

    utilisation_percent: float | None = None
    memory_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class Sampler:
    """Takes samples of one device; those of a CPU slot are means since the one before."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._at = time.monotonic()
        self._seconds: dict[int, float] = {}  # CPU seconds of each process at the last sample

    def take(self, trainer_pid: int | None) -> Sample:
        if self._device.kind == "cuda":
            return _of_card(self._device.uuid)
        return self._of_slot(trainer_pid)

    def _of_slot(self, trainer_pid: int | None) -> Sample:
        members = [] if trainer_pid is None else processes.session_members(trainer_pid)
        seconds: dict[int, float] = {}
        memory = 0
        for pid in members:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                times = process.cpu_times()
                seconds[pid] = times.user + times.system
                memory += process.memory_info().rss
        used = sum(now - self._seconds.get(pid, 0.0) for pid, now in seconds.items())
        elapsed = time.monotonic() - self._at
        self._at, self._seconds = time.monotonic(), seconds
        cores = max(1, len(self._device.cores))
        percent = min(100.0, 100 * used / (elapsed * cores)) if elapsed > 0 else 0.0
        return Sample(utilisation_percent=percent, memory_used_bytes=memory)


def _of_card(uuid: str) -> Sample:
    with nvml() as library:
        if library is None:
            return Sample()
        try:
            handle = library.nvmlDeviceGetHandleByUUID(uuid)
        except library.NVMLError:
            return Sample()

        def ask(question: Callable[[], Any]) -> Any:
            try:
                return question()
            except library.NVMLError:
                return None

        rates = ask(lambda: library.nvmlDeviceGetUtilizationRates(handle))
        memory = ask(lambda: library.nvmlDeviceGetMemoryInfo(handle))
        degrees = ask(
            lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)
        )
        milliwatts = ask(lambda: library.nvmlDeviceGetPowerUsage(handle))
    return Sample(
        utilisation_percent=None if rates is None else float(rates.gpu),
        memory_used_bytes=None if memory is None else int(memory.used),
        temperature_celsius=None if degrees is None else float(degrees),
        power_watts=None if milliwatts is None else milliwatts / 1000,
    )

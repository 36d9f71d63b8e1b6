"""Does somebody else use our device's memory? Asked before a job is taken, so that it does not
fail with out of memory after hours in a queue."""

from __future__ import annotations

from collections.abc import Collection

from gpu_worker.devices import Device, nvml

# A display server or a monitor may hold this much without being in anybody's way.
TOLERATED_BYTES = 512 * 1024**2


def foreign_use(device: Device, own_pids: Collection[int]) -> str | None:
    """Who else uses the device, in words; None when nobody does.

    `own_pids` are the pids of our trainer. In a container NVML tells the host's pids, which match
    none of ours: while our own trainer lives such an answer says nothing, and we take it for ours.
    """
    if device.kind != "cuda":
        return None
    with nvml() as library:
        if library is None:
            return "the NVIDIA driver does not answer any more"
        try:
            handle = library.nvmlDeviceGetHandleByUUID(device.uuid)
            processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
            # Version 2 leaves out what the driver keeps for itself (over 512 MiB on an H100).
            memory = library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
            used = int(memory.used)
        except library.NVMLError as error:
            return f"the NVIDIA driver reports: {error}"
    pids = {int(process.pid) for process in processes}
    if own_pids and not pids & set(own_pids):
        return None
    foreign = [process for process in processes if int(process.pid) not in own_pids]
    # A MIG slice or an old driver tells no memory by process: then the sum decides, when idle.
    by_process = [int(process.usedGpuMemory or 0) for process in foreign]
    taken = sum(by_process) if own_pids or any(by_process) else used
    if taken <= TOLERATED_BYTES:
        return None
    who = ", ".join(str(process.pid) for process in foreign) or "unknown"
    return f"another process (pid {who}) uses {taken / 1e9:.1f} GB of the device's memory"

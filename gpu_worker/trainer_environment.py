"""The trainer's environment: what it needs, by name, and nothing else.

An allow-list, because a list of forbidden names forgets the next credential. The trainer runs
code of model authors when an administrator allows it; it gets no key, no token and no address.
"""

from __future__ import annotations

import os

from gpu_worker.devices import Device
from gpu_worker.protocol import MESSAGE_FD_VARIABLE
from gpu_worker.tether import CORES_VARIABLE

_ALLOWED = frozenset(
    """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR VIRTUAL_ENV LD_LIBRARY_PATH LD_PRELOAD
    CC CXX XDG_CACHE_HOME HF_HOME HF_MODULES_CACHE CONDA_PREFIX
    """.split()  # noqa: SIM905 (as a list it would be a column of forty lines)
)
_ALLOWED_BEGINNINGS = (
    "LC_",
    "PYTHON",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "CUBLAS_",
    "CUDNN_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "BNB_",
    "BITSANDBYTES_",
    "OMP_",
    "MKL_",
    "KMP_",
)


def trainer_environment(device: Device, message_fd: int) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ALLOWED or name.startswith(_ALLOWED_BEGINNINGS)
    }
    fixed = {
        MESSAGE_FD_VARIABLE: str(message_fd),
        # The supervisor has fetched everything: a trainer that looks for more would hang or differ.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",  # it warns when data loaders are forked
        "PYTHONUNBUFFERED": "1",  # what it printed before it was killed is in the log
    }
    if device.cores:
        fixed[CORES_VARIABLE] = ",".join(map(str, device.cores))
    return kept | device.environment() | fixed

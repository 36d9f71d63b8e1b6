"""What bitsandbytes keeps for the life of a process, which a warm process must give up."""

from __future__ import annotations

from typing import Any

from bitsandbytes.functional import GlobalPageManager
from bitsandbytes.optim.optimizer import GlobalOptimManager

LIMIT_BYTES = 2**30


class PagedMemory:
    """Counts the paged optimizer memory that earlier jobs left behind.

    bitsandbytes allocates it with cudaMallocManaged and has no call that frees it, so a warm
    process loses some with every job on a CUDA device. When it has lost too much it is replaced.
    """

    def __init__(self) -> None:
        self.lost_bytes = 0

    def forget_job(self) -> None:
        """Drop the references that the managers hold to a job's tensors and to the base."""
        pages: Any = GlobalPageManager.get_instance()  # type: ignore[no-untyped-call]
        self.lost_bytes += sum(t.numel() * t.element_size() for t in pages.paged_tensors)
        pages.initialize()
        overrides: Any = GlobalOptimManager.get_instance()  # type: ignore[no-untyped-call]
        overrides.initialize()

    @property
    def too_much(self) -> bool:
        return self.lost_bytes > LIMIT_BYTES

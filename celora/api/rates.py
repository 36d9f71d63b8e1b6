"""What a key may still spend, as the answer's headers say it."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    limit: int  # requests a minute; 0: any number
    spent_seconds: float  # of the window, that many are spoken for

    @property
    def remaining(self) -> int:
        left = (WINDOW_SECONDS - self.spent_seconds) * self.limit / WINDOW_SECONDS
        return max(0, math.floor(left + 1e-6))

    @property
    def wait_seconds(self) -> int:
        """Until one more request is allowed, in whole seconds."""
        return max(1, math.ceil(self.spent_seconds + WINDOW_SECONDS / self.limit - WINDOW_SECONDS))

    def headers(self) -> dict[str, str]:
        """OpenAI's names. `reset` is when the whole limit is free again."""
        if self.limit == 0:
            return {}
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{max(0, self.spent_seconds):.3f}s",
        }

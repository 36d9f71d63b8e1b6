"""How fast like jobs trained, and how much memory they took: measured, from their results."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Measured:
    """Of finished jobs on one kind of device: medians."""

    device: str
    jobs: int
    tokens_per_second: float
    largest_peak_bytes: int | None


def measured_throughput(
    session: Session, *, base_model: str, method: str, max_jobs: int = 50
) -> list[Measured]:
    """From the newest finished jobs on the same base with the same method, by device.

    Only jobs that ran from their first step to their last in one attempt: the seconds of a resumed
    job are those of its last part.
    """
    rows = session.execute(
        _MEASURED, {"base_model": base_model, "method": method, "max_jobs": max_jobs}
    )
    return [Measured(*row) for row in rows]


_MEASURED = text("""
    WITH newest AS (
        SELECT result FROM jobs
        WHERE base_model = :base_model AND method = :method AND state = 'completed'
          AND CAST(result ->> 'seconds' AS float8) > 0
          AND CAST(result ->> 'resumed_at_step' AS int) = 0
        ORDER BY finished_at DESC
        LIMIT :max_jobs
    )
    SELECT result ->> 'device', count(*),
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY CAST(result ->> 'trained_tokens' AS float8)
                        / CAST(result ->> 'seconds' AS float8)),
           max(CAST(result ->> 'peak_memory_bytes' AS bigint))
    FROM newest
    GROUP BY result ->> 'device'
    ORDER BY 2 DESC, 1
""")

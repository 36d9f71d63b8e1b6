"""How fast like jobs trained, and how much memory they took: measured, from their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Measured:
    """Of finished jobs on one kind of device: medians."""

    device: str
    jobs: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Work:
    """Of finished jobs on any base, on one kind of device: medians of parameters × tokens/s."""

    device: str
    jobs: int
    parameter_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a finished job had allocated on its CUDA device, and what it was."""

    spec: dict[str, Any]
    verdict: dict[str, Any]
    batch_size: int  # the micro-batch it ended with
    peak_bytes: int


def measured_throughput(
    session: Session, *, base_model: str, method: str, dpo_base: str = "lora", max_jobs: int = 50
) -> list[Measured]:
    """From the newest finished jobs on the same base with the same method, by device. A dpo job is
    like those whose base was held alike.

    Only jobs that ran from their first step to their last in one attempt: the seconds of a resumed
    job are those of its last part.
    """
    asked = {"base_model": base_model, "method": method, "dpo_base": dpo_base}
    rows = session.execute(_MEASURED, asked | {"max_jobs": max_jobs})
    return [Measured(*row) for row in rows]


def measured_work(
    session: Session, *, method: str, dpo_base: str = "lora", max_jobs: int = 50
) -> list[Work]:
    """From the newest finished jobs with the same method, whatever their base, by device. As above,
    only those that ran in one attempt."""
    asked = {"method": method, "dpo_base": dpo_base, "max_jobs": max_jobs}
    return [Work(*row) for row in session.execute(_WORK, asked)]


def measured_peaks(
    session: Session, *, base_model: str, method: str, max_jobs: int = 50
) -> list[Peak]:
    """Of the newest finished jobs on the same base with the same method, on CUDA devices alone.

    On a CPU slot a job's peak is the resident memory of its whole process, libraries and warm base
    included: it says nothing about a GPU.
    """
    rows = session.execute(
        _PEAKS, {"base_model": base_model, "method": method, "max_jobs": max_jobs}
    )
    return [Peak(*row) for row in rows]


_MEASURED = text("""
    WITH newest AS (
        SELECT result FROM jobs
        WHERE base_model = :base_model AND method = :method AND state = 'completed'
          AND coalesce(spec ->> 'dpo_base', 'lora') = :dpo_base
          AND CAST(result ->> 'seconds' AS float8) > 0
          AND CAST(result ->> 'resumed_at_step' AS int) = 0
        ORDER BY finished_at DESC
        LIMIT :max_jobs
    )
    SELECT result ->> 'device', count(*),
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY CAST(result ->> 'trained_tokens' AS float8)
                        / CAST(result ->> 'seconds' AS float8))
    FROM newest
    GROUP BY result ->> 'device'
    ORDER BY 2 DESC, 1
""")

_WORK = text("""
    WITH newest AS (
        SELECT result FROM jobs
        WHERE method = :method AND state = 'completed'
          AND coalesce(spec ->> 'dpo_base', 'lora') = :dpo_base
          AND CAST(result ->> 'seconds' AS float8) > 0
          AND CAST(result ->> 'resumed_at_step' AS int) = 0
          AND result ->> 'total_parameters' IS NOT NULL
        ORDER BY finished_at DESC
        LIMIT :max_jobs
    )
    SELECT result ->> 'device', count(*),
           percentile_cont(0.5) WITHIN GROUP (
               ORDER BY CAST(result ->> 'trained_tokens' AS float8)
                        / CAST(result ->> 'seconds' AS float8)
                        * CAST(result ->> 'total_parameters' AS float8))
    FROM newest
    GROUP BY result ->> 'device'
    ORDER BY 2 DESC, 1
""")

_PEAKS = text("""
    SELECT spec, coalesce(verdict, '{}'), CAST(result ->> 'batch_size' AS int),
           CAST(result ->> 'peak_memory_bytes' AS bigint)
    FROM jobs
    WHERE base_model = :base_model AND method = :method AND state = 'completed'
      AND result ->> 'peak_memory_bytes' IS NOT NULL AND result ->> 'batch_size' IS NOT NULL
      AND EXISTS (
          SELECT FROM gpus WHERE gpus.kind = 'cuda' AND gpus.model = jobs.result ->> 'device'
      )
    ORDER BY finished_at DESC
    LIMIT :max_jobs
""")

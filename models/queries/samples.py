"""What devices were doing over time: written every few seconds, thinned as it ages."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from models.queries.retention_rules import take_time
from models.tables import GpuSample

# Every sample of the last day, one a minute for the month before it, then none.
WHOLE_DAYS = 1
KEPT_DAYS = 31


def record_sample(
    session: Session,
    gpu_id: int,
    *,
    utilisation_percent: float | None,
    memory_used_bytes: int | None,
    temperature_celsius: float | None,
    power_watts: float | None,
) -> None:
    session.execute(
        insert(GpuSample).values(
            gpu_id=gpu_id,
            sampled_at=func.clock_timestamp(),
            utilisation_percent=utilisation_percent,
            memory_used_bytes=memory_used_bytes,
            temperature_celsius=temperature_celsius,
            power_watts=power_watts,
        )
    )


def samples_between(
    session: Session, gpu_id: int, start: datetime, end: datetime
) -> list[GpuSample]:
    return list(
        session.scalars(
            select(GpuSample)
            .where(GpuSample.gpu_id == gpu_id, GpuSample.sampled_at.between(start, end))
            .order_by(GpuSample.sampled_at)
        )
    )


def thin_samples(session: Session) -> int:
    """Delete what is too old, and of older days all but one sample a minute; returns how many."""
    take_time(session)  # a month of some hundred GPUs is looked through
    return len(session.execute(_THIN, {"whole_days": WHOLE_DAYS, "kept_days": KEPT_DAYS}).all())


_THIN = text("""
    WITH numbered AS (
        SELECT gpu_id, sampled_at, row_number() OVER (
                   PARTITION BY gpu_id, date_trunc('minute', sampled_at) ORDER BY sampled_at
               ) AS place
        FROM gpu_samples
        WHERE sampled_at < clock_timestamp() - make_interval(days => :whole_days)
    )
    DELETE FROM gpu_samples USING numbered
    WHERE gpu_samples.gpu_id = numbered.gpu_id AND gpu_samples.sampled_at = numbered.sampled_at
      AND (place > 1
           OR numbered.sampled_at < clock_timestamp() - make_interval(days => :kept_days))
    RETURNING 1
""")

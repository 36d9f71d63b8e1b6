"""What the dispatcher expects of the jobs at the front of the queue; made anew every few seconds.

Nothing depends on it: administrators and `celora jobs` read it, placement does not.
"""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Instant, JobId


class Forecast(Base):
    __tablename__ = "forecasts"

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int | None]  # from 1, in the dispatcher's order; none: it cannot be placed
    reason: Mapped[str]  # a code of models/queries/waiting.py
    sentence: Mapped[str]
    expected_start_at: Mapped[Instant | None]
    basis: Mapped[str | None]  # what the expectation rests on, in words
    made_at: Mapped[Instant]

"""What a run leaves behind while it goes: metrics, events and log lines."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, JobId, Json, RowId


class Metric(Base):
    """One value of one metric at one optimizer step. A step that is run again replaces its row."""

    __tablename__ = "metrics"

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    stage: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]
    fence: Mapped[int] = mapped_column(BigInteger)
    recorded_at: Mapped[Instant]


class Event(Base):
    """A job's story in plain words; append-only."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id_id", "job_id", "id"),)

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[Created]
    level: Mapped[str] = mapped_column(server_default="info")  # info, warn, error
    kind: Mapped[str]  # submitted, prepared, placed, claimed, checkpoint, lost, completed, …
    message: Mapped[str]
    data: Mapped[Json | None]
    # The transaction that wrote it (none: an earlier version did). Ids are given before a commit,
    # so a reader that goes on behind the last id it saw would miss one that was committed late.
    written_by: Mapped[int | None] = mapped_column(
        BigInteger, server_default=text("(pg_current_xact_id())::text::bigint")
    )


class LogLine(Base):
    __tablename__ = "log_lines"
    __table_args__ = (Index("ix_log_lines_job_id_id", "job_id", "id"),)

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    stage: Mapped[str]
    logged_at: Mapped[Instant]
    level: Mapped[str]
    line: Mapped[str]


class Counter(Base):
    """Things that happen to no job in particular: dropped tickets, unknown messages."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[Instant]

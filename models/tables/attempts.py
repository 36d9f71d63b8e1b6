"""An attempt: one holder of a job's fence, with its lease. Rows stay as the job's history."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from models.tables.base import Base, Instant, JobId, RowId


class Attempt(Base):
    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "fence"),
        # The database itself refuses a second live attempt on one GPU, or of one job.
        Index(
            "uq_attempts_live_gpu",
            "gpu_id",
            unique=True,
            postgresql_where=text("ended_at IS NULL AND gpu_id IS NOT NULL"),
        ),
        Index(
            "uq_attempts_live_job",
            "job_id",
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
        # How long jobs took lately is read from its end.
        Index(
            "ix_attempts_completed",
            "ended_at",
            postgresql_where=text("outcome = 'completed' AND gpu_id IS NOT NULL"),
        ),
        Index(
            "ix_attempts_ended_at",
            "ended_at",
            postgresql_where=text("ended_at IS NOT NULL AND gpu_id IS NOT NULL"),
        ),
        Index(
            "ix_attempts_preempted_for",
            "preempted_for",
            postgresql_where=text("preempted_for IS NOT NULL"),
        ),
    )

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    gpu_id: Mapped[int | None] = mapped_column(ForeignKey("gpus.id"))  # none: preprocessing
    first_stage: Mapped[str]
    # Stages this attempt has claimed, each at most once: a second ticket finds its stage here.
    claimed_stages: Mapped[list[str]] = mapped_column(
        ARRAY(Text), server_default=text("'{}'::text[]")
    )
    worker: Mapped[str | None]
    worker_session: Mapped[str | None]
    trainer_pid: Mapped[int | None]
    trainer_warm: Mapped[bool | None]
    # Not now(): that is when the transaction began, which may be before the GPU became free.
    placed_at: Mapped[Instant] = mapped_column(server_default=func.clock_timestamp())
    claimed_at: Mapped[Instant | None]
    lease_until: Mapped[Instant | None]  # on the database's clock; none until claimed
    stage_at: Mapped[Instant | None]  # when its present stage was claimed, or became due
    # The urgent job that is to have its GPU, when it was asked to make room for one.
    preempted_for: Mapped[str | None] = mapped_column(Text(collation="C"))
    ended_at: Mapped[Instant | None]
    outcome: Mapped[str | None]
    reason: Mapped[str | None]  # why it ended, in words
    start_step: Mapped[int | None]
    end_step: Mapped[int | None]

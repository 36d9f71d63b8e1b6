"""What administrators ask of many jobs at once, counted ahead by day, and what a GPU hour costs."""

from __future__ import annotations

from datetime import date

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Instant, JobId


class TenantDay(Base):
    """One tenant on one day (UTC), by the day on which jobs and attempts ended."""

    __tablename__ = "tenant_days"

    tenant_id: Mapped[int] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    day: Mapped[date] = mapped_column(primary_key=True)
    jobs_completed: Mapped[int]
    jobs_failed: Mapped[int]
    jobs_cancelled: Mapped[int]
    gpu_seconds: Mapped[float]
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[float]  # at the prices of when it was counted


class WaitDay(Base):
    """How long jobs waited for their first GPU, counted in buckets of a logarithmic scale."""

    __tablename__ = "wait_days"

    tenant_id: Mapped[int] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    priority: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    # Bucket b holds waits from 1.1^b - 1 to 1.1^(b + 1) - 1 seconds: 5 % off at most.
    bucket: Mapped[int] = mapped_column(primary_key=True)
    jobs: Mapped[int]


class BestEvaluation(Base):
    """The job whose tuned model has the lowest loss on one base model and one set of data."""

    __tablename__ = "best_evaluations"

    base_model: Mapped[str] = mapped_column(primary_key=True)
    data_digest: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    loss: Mapped[float]


class GpuPrice(Base):
    """What an hour on a GPU model costs; the longest name that fits a model counts."""

    __tablename__ = "gpu_prices"
    __table_args__ = (CheckConstraint("price_per_hour >= 0", name="price_not_negative"),)

    model: Mapped[str] = mapped_column(primary_key=True)  # part of the name, in lower case
    price_per_hour: Mapped[float]  # in the administrator's currency
    changed_at: Mapped[Instant]

"""Who shares the pool: tenants, and the users within each. Weight and recent use decide whose job
goes next; limits make a job wait, with a reason, and never refuse it.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, Json, RowId


class Tenant(Base):
    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    id: Mapped[RowId]
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float] = mapped_column(server_default="1")
    # GPU-seconds used, halved every `usage_half_life_seconds`; true at `usage_at`, decayed on read.
    usage_gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    usage_at: Mapped[Instant] = mapped_column(server_default=func.now())
    # How long its attempts on GPUs take, the recent ones counting most; none before the first.
    attempt_gpu_seconds: Mapped[float | None]
    # Limits of the tenant as a whole; none: no limit.
    max_running_jobs: Mapped[int | None]  # placed or running on a GPU at once
    max_queued_jobs: Mapped[int | None]  # prepared and waiting for a GPU; others stay pending
    gpu_hours_per_month: Mapped[float | None]  # calendar month, UTC
    disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # Limits of each of its users, where the user's own row says nothing else.
    user_max_running_jobs: Mapped[int | None]
    user_max_queued_jobs: Mapped[int | None]
    user_gpu_hours_per_month: Mapped[float | None]
    user_disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # Whether its urgent jobs may take the GPU of a preemptible one.
    may_preempt: Mapped[bool] = mapped_column(server_default=text("true"))
    retention: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))  # RetentionRules
    created_at: Mapped[Created]


class User(Base):
    """One person of a tenant. Its limits win over the tenant's `user_…` ones."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[RowId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    max_running_jobs: Mapped[int | None]
    max_queued_jobs: Mapped[int | None]
    gpu_hours_per_month: Mapped[float | None]
    disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    disk_used_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")  # by the sweep
    created_at: Mapped[Created]


class UsageDay(Base):
    """GPU time of one user on one day (UTC), counted when an attempt ends."""

    __tablename__ = "usage_days"

    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    day: Mapped[date] = mapped_column(primary_key=True)
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")

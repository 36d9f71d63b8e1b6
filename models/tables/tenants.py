"""Who shares the pool. Weight and recent use decide whose job goes next."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, RowId


class Tenant(Base):
    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    id: Mapped[RowId]
    name: Mapped[str] = mapped_column(unique=True)
    weight: Mapped[float] = mapped_column(server_default="1")
    # GPU-seconds used, halved every `usage_half_life_seconds`; true at `usage_at`, decayed on read.
    usage_gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    usage_at: Mapped[Instant] = mapped_column(server_default=func.now())
    created_at: Mapped[Created]

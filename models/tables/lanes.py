"""Lanes: where a job queues. One for each user, need and urgency, so that one probe finds its best.

Whatever may keep a job from a GPU that is free is a property of its lane: the tenant's and the
user's limits, and whether the GPU has what the job needs. A lane is passed over as a whole; the
dispatcher never walks along a million jobs that it may not place.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Json, RowId


class GpuNeed(Base):
    """What jobs ask of a GPU, each distinct wish once."""

    __tablename__ = "gpu_needs"

    id: Mapped[RowId]
    key: Mapped[str] = mapped_column(unique=True)  # GpuWish.key(): the wish in canonical form
    memory_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")  # at least
    model: Mapped[str | None]  # part of the model's name, in lower case
    labels: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))  # all of these


class Lane(Base):
    __tablename__ = "lanes"
    __table_args__ = (
        Index("uq_lanes_user_id_need_id_urgent", "user_id", "need_id", "urgent", unique=True),
        Index("ix_lanes_tenant_id_urgent", "tenant_id", "urgent"),
    )

    id: Mapped[RowId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    need_id: Mapped[int] = mapped_column(ForeignKey("gpu_needs.id"))
    urgent: Mapped[bool] = mapped_column(server_default=text("false"))

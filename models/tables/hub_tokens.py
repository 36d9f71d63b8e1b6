"""Tokens of tenants for the model hub."""

from __future__ import annotations

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created


class HubToken(Base):
    """One tenant's token, sealed with CELORA_SECRET_KEY: this row alone opens nothing."""

    __tablename__ = "hub_tokens"

    tenant_id: Mapped[int] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    sealed: Mapped[str]
    created_at: Mapped[Created]

"""Who may call the HTTP API, and how often: keys, and what each may still spend."""

from __future__ import annotations

from sqlalchemy import ForeignKey, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant


class ApiKey(Base):
    """One key of one user. The key itself is nowhere: only its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    prefix: Mapped[str]  # its first characters, by which people tell keys apart
    name: Mapped[str | None]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    user_name: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    requests_per_minute: Mapped[int | None]  # none: CELORA_API_REQUESTS_PER_MINUTE; 0: any number
    expires_at: Mapped[Instant | None]
    revoked_at: Mapped[Instant | None]
    last_used_at: Mapped[Instant | None]  # written once a minute at most
    created_at: Mapped[Created]


class ApiRate(Base):
    """What a key has spent of its rate: it is free again in full at `free_at`.

    Unlogged: a row changes with every request, and after a crash everybody may start afresh.
    """

    __tablename__ = "api_rates"
    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": "50"}},)

    key_id: Mapped[str] = mapped_column(
        ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True
    )
    free_at: Mapped[Instant]

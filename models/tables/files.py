"""Files that people upload through the HTTP API, and result files that they fetch there."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant


class StoredFile(Base):
    """One file in the artifact store. Deleted ones stay on record, their content does not."""

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_tenant", "tenant_id", "created_at", "id"),
        Index(
            "ix_files_expires",
            "expires_at",
            postgresql_where=text("deleted_at IS NULL AND expires_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # file-…
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    user_name: Mapped[str]
    purpose: Mapped[str]  # fine-tune, fine-tune-results
    filename: Mapped[str]  # as its owner calls it; never a path of ours
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    line_count: Mapped[int | None] = mapped_column(BigInteger)  # for "auto" hyperparameters
    digest: Mapped[str]  # SHA-256, hexadecimal
    url: Mapped[str]  # of the folder in the store
    created_at: Mapped[Created]
    expires_at: Mapped[Instant | None]
    deleted_at: Mapped[Instant | None]

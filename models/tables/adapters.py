"""Adapters under a name: versions that never change, aliases that move, and what people prefer."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, JobId, Json, RowId


class AdapterName(Base):
    """A tenant's name for a line of adapters. Whoever changes anything below it locks this row."""

    __tablename__ = "adapter_names"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[RowId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    versions: Mapped[int]  # given out so far; a number is never used twice
    created_at: Mapped[Created]


class Adapter(Base):
    """One version, with all that it was made from. The database refuses to change it; a version
    that is deleted keeps its row."""

    __tablename__ = "adapters"
    __table_args__ = (
        UniqueConstraint("name_id", "version"),
        Index(
            "uq_adapters_name_id_job_id",
            "name_id",
            "job_id",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_adapters_job_id", "job_id"),
        # The sweep asks which artifacts a version needs.
        Index("ix_adapters_artifact_id", "artifact_id"),
        CheckConstraint("kind IN ('adapter', 'model')", name="kind_known"),
    )

    id: Mapped[RowId]
    name_id: Mapped[int] = mapped_column(ForeignKey("adapter_names.id", ondelete="CASCADE"))
    version: Mapped[int]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id"))
    artifact_id: Mapped[int] = mapped_column(ForeignKey("artifacts.id"))
    kind: Mapped[str]  # adapter; model for method full
    url: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str | None]  # sha256 of its weights files
    # Copied from the job: what it was made from.
    data_digest: Mapped[str | None]
    base_model: Mapped[str]
    base_revision: Mapped[str | None]
    method: Mapped[str]
    rank: Mapped[int | None]  # none for method full
    seed: Mapped[int]
    spec: Mapped[Json]
    code_versions: Mapped[Json]  # Celora's and its libraries', as the trainer told them
    registered_by: Mapped[str]
    registered_at: Mapped[Created]
    deleted_at: Mapped[Instant | None]
    deleted_by: Mapped[str | None]


class AdapterAlias(Base):
    """Where an alias of a name points."""

    __tablename__ = "adapter_aliases"

    name_id: Mapped[int] = mapped_column(
        ForeignKey("adapter_names.id", ondelete="CASCADE"), primary_key=True
    )
    alias: Mapped[str] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))


class AdapterGate(Base):
    """What a version must show before the alias moves to it."""

    __tablename__ = "adapter_gates"
    __table_args__ = (
        CheckConstraint("against IN ('base', 'holder')", name="against_known"),
        CheckConstraint("least >= 0", name="least_not_negative"),
    )

    name_id: Mapped[int] = mapped_column(
        ForeignKey("adapter_names.id", ondelete="CASCADE"), primary_key=True
    )
    alias: Mapped[str] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)  # of models/gates.py
    against: Mapped[str] = mapped_column(primary_key=True)
    least: Mapped[float]  # least improvement, in the metric's unit
    set_by: Mapped[str]
    set_at: Mapped[Created]


class AdapterMove(Base):
    """One move of an alias, with the figures it moved on. Only ever added."""

    __tablename__ = "adapter_moves"
    __table_args__ = (
        Index("ix_adapter_moves_name_id_alias_id", "name_id", "alias", "id"),
        CheckConstraint("kind IN ('moved', 'forced', 'rolled_back', 'removed')", name="kind_known"),
    )

    id: Mapped[RowId]
    name_id: Mapped[int] = mapped_column(ForeignKey("adapter_names.id", ondelete="CASCADE"))
    alias: Mapped[str]
    kind: Mapped[str]
    from_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))
    to_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id"))  # none: removed
    figures: Mapped[list[Json]] = mapped_column(JSONB)  # one a gate: models/gates.py
    reason: Mapped[str | None]  # of a forced move
    moved_by: Mapped[str]
    moved_at: Mapped[Created]


class Rating(Base):
    """Which of two answers a person preferred, without knowing whose they were."""

    __tablename__ = "ratings"
    __table_args__ = (
        ForeignKeyConstraint(
            ["job_id", "position"],
            ["samples.job_id", "samples.position"],
            name="fk_ratings_job_id_position",
            ondelete="CASCADE",
        ),
        CheckConstraint("preferred IN ('tuned', 'base', 'tie', 'skip')", name="preferred_known"),
    )

    job_id: Mapped[JobId] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # of the sample
    person: Mapped[str] = mapped_column(primary_key=True)
    preferred: Mapped[str]
    tuned_left: Mapped[bool]  # on which side it stood: whoever always says "left" shows
    rated_at: Mapped[Instant] = mapped_column(server_default=func.now())

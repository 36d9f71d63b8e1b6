"""Who is told what about jobs, and what became of each message."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.notices import DeliveryState, Format, Kind
from models.tables.base import Base, Created, Instant, JobId, Json, RowId


def _one_of(column: str, values: type[Kind | Format | DeliveryState]) -> str:
    listed = ", ".join(f"'{value.value}'" for value in values)
    return f"{column} IN ({listed})"


class Target(Base):
    """An address of a tenant: a webhook, or one of the services that Apprise knows."""

    __tablename__ = "notification_targets"
    __table_args__ = (
        CheckConstraint(_one_of("kind", Kind), name="kind_known"),
        CheckConstraint(_one_of("format", Format), name="format_known"),
        Index(
            "uq_notification_targets_name",
            "tenant_id",
            "name",
            unique=True,
            postgresql_where=text("removed_at IS NULL"),
        ),
    )

    id: Mapped[RowId]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    kind: Mapped[str]
    format: Mapped[str] = mapped_column(server_default="celora")
    # The address may hold a token: sealed, see models/secrets.py. None once it is removed.
    sealed_url: Mapped[str | None]
    sealed_secret: Mapped[str | None]  # what a webhook is signed with
    shown: Mapped[str]  # of the address what says where it leads and no more
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))  # of all jobs of the tenant
    wait_seconds: Mapped[float]  # waiting for a GPU that is too long
    budget_percent: Mapped[float]  # of the month's GPU hours that counts as nearly all
    # Jobs queued before this moment have been looked at for having waited too long.
    waits_seen_until: Mapped[Instant | None]
    created_at: Mapped[Created]
    created_by: Mapped[str]
    removed_at: Mapped[Instant | None]
    # One message at a time: until when a sender has it, and which sending that is.
    busy_until: Mapped[Instant | None]
    sendings: Mapped[int] = mapped_column(BigInteger, server_default="0")
    tried_at: Mapped[Instant | None]


class JobTarget(Base):
    """A target that hears of one job, beside what it hears of its tenant's jobs."""

    __tablename__ = "job_targets"
    __table_args__ = (
        Index("ix_job_targets_look_at", "look_at", postgresql_where=text("look_at IS NOT NULL")),
        Index("ix_job_targets_target_id", "target_id"),
    )

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    target_id: Mapped[int] = mapped_column(
        ForeignKey("notification_targets.id", ondelete="CASCADE"), primary_key=True
    )
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    wait_seconds: Mapped[float | None]  # none: the target's
    look_at: Mapped[Instant | None]  # when to see whether it waits too long; none: not this wait


class Delivery(Base):
    """One message to one target: written with what it tells of, sent afterwards."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("state", DeliveryState), name="state_known"),
        Index(
            "ix_deliveries_due",
            "target_id",
            "next_at",
            "id",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index("ix_deliveries_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
        Index("ix_deliveries_target_id_id", "target_id", "id"),
        Index("ix_deliveries_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
        Index(
            "uq_deliveries_target_id_once_key",
            "target_id",
            "once_key",
            unique=True,
            postgresql_where=text("once_key IS NOT NULL"),
        ),
    )

    id: Mapped[RowId]
    # `webhook-id`, the same at every try.
    message_id: Mapped[str] = mapped_column(unique=True)
    target_id: Mapped[int] = mapped_column(
        ForeignKey("notification_targets.id", ondelete="CASCADE")
    )
    job_id: Mapped[str | None] = mapped_column(
        Text(collation="C"), ForeignKey("jobs.id", ondelete="CASCADE")
    )
    notice: Mapped[str]
    data: Mapped[Json]  # what was true when it happened
    once_key: Mapped[str | None]  # of what a target is told once
    created_at: Mapped[Created]
    state: Mapped[str] = mapped_column(server_default="waiting")
    next_at: Mapped[Instant] = mapped_column(server_default=text("clock_timestamp()"))
    attempts: Mapped[int] = mapped_column(server_default="0")
    tried_at: Mapped[Instant | None]
    status: Mapped[int | None]  # HTTP status of the last answer
    cause: Mapped[str | None]  # why the last try did not succeed, in a few words
    ended_at: Mapped[Instant | None]

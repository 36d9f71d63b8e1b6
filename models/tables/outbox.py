"""Tickets to publish: written with the decision they carry, sent by the relay."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.tables.base import Base, Created, Instant, JobId, RowId
from models.tables.jobs import Job


class Ticket(Base):
    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),
        Index("ix_outbox_job_id_fence", "job_id", "fence"),
    )

    id: Mapped[RowId]
    job_id: Mapped[JobId]
    fence: Mapped[int] = mapped_column(BigInteger)
    stage: Mapped[str]  # first stage of the chain that is published
    queue: Mapped[str]
    evaluate: Mapped[bool] = mapped_column(server_default=text("true"))  # the chain has a tail
    created_at: Mapped[Created]
    sent_at: Mapped[Instant | None]
    send_attempts: Mapped[int] = mapped_column(server_default="0")
    last_error: Mapped[str | None]

    # Not a foreign key: a ticket may outlive its job. Loaded by the relay alone, and there in part.
    job: Mapped[Job | None] = relationship(
        primaryjoin="foreign(Ticket.job_id) == Job.id", viewonly=True
    )

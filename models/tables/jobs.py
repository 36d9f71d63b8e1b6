"""A job: what was asked, where it stands, and what came of it. Postgres is the queue of record."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.states import JobState, Purpose, Stage, StopReason
from models.tables.base import Base, Created, Instant, JobId, Json
from models.tables.tenants import Tenant


def one_of(column: str, values: type[JobState | Stage | StopReason | Purpose]) -> str:
    """A CHECK that a text column holds one of an enumeration's values.

    Text with a check, not a Postgres enum: a check is replaced in one migration that an old
    worker survives.
    """
    listed = ", ".join(f"'{value.value}'" for value in values)
    return f"{column} IN ({listed})"


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("state", JobState), name="state_known"),
        CheckConstraint(one_of("stage", Stage), name="stage_known"),
        CheckConstraint(one_of("stop_requested", StopReason), name="stop_known"),
        CheckConstraint(one_of("purpose", Purpose), name="purpose_known"),
        # Placement probes the best job of each lane here: the order is the dispatcher's.
        Index(
            "ix_jobs_queued_turn",
            "lane_id",
            "turn_at",
            "id",
            postgresql_where=text("state = 'queued' AND waits_for IS NULL"),
        ),
        # For telling who has waited too long: those that wait longest first.
        Index(
            "ix_jobs_waiting",
            "tenant_id",
            "queued_at",
            postgresql_where=text("state IN ('pending', 'queued') AND waits_for IS NULL"),
        ),
        # Preparation probes likewise.
        Index(
            "ix_jobs_pending_turn",
            "lane_id",
            "turn_at",
            "id",
            postgresql_where=text("state = 'pending'"),
        ),
        # Jobs that another version or another program inserted: reconcile gives them a lane.
        Index(
            "ix_jobs_without_lane",
            "id",
            postgresql_where=text("lane_id IS NULL AND state IN ('pending', 'queued')"),
        ),
        Index("ix_jobs_waits_for", "waits_for", postgresql_where=text("waits_for IS NOT NULL")),
        # Whose is the prepared data, and does anybody still need it?
        Index(
            "ix_jobs_prepared_url",
            "prepared_url",
            postgresql_where=text("prepared_url IS NOT NULL"),
        ),
        Index(
            "ix_jobs_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")
        ),
        Index("ix_jobs_started_at", "started_at", postgresql_where=text("started_at IS NOT NULL")),
        # What was exported of a job, and who still needs its adapter.
        Index("ix_jobs_source_job", "source_job", postgresql_where=text("source_job IS NOT NULL")),
        Index("ix_jobs_running", "id", postgresql_where=text("state = 'running'")),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        Index("ix_jobs_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        Index("uq_jobs_tenant_id_idempotency_key", "tenant_id", "idempotency_key", unique=True),
        # Room on each page for the next version of a row: progress then touches no index.
        {"postgresql_with": {"fillfactor": 80}},
    )

    id: Mapped[JobId] = mapped_column(primary_key=True)  # ftjob-…, random: never reused
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    user_name: Mapped[str]
    name: Mapped[str | None]
    idempotency_key: Mapped[str | None]

    # Of an export or a chat: the job that trained the adapter, and what is asked of it (see
    # models/adapter_work.py). `spec` is then what that job was trained with.
    purpose: Mapped[str] = mapped_column(server_default="tune")
    source_job: Mapped[str | None] = mapped_column(
        Text(collation="C"), ForeignKey("jobs.id", ondelete="SET NULL")
    )
    work: Mapped[Json | None]

    spec: Mapped[Json]  # JobSpec as JSON, whole: what was asked is never rewritten
    base_model: Mapped[str]  # copied from spec, for people's SQL
    method: Mapped[str]
    priority: Mapped[int]
    lane_id: Mapped[int | None] = mapped_column(ForeignKey("lanes.id"))
    # The job that has to complete first; none once it has. Until then this one is not placed.
    waits_for: Mapped[str | None] = mapped_column(
        Text(collation="C"), ForeignKey("jobs.id", ondelete="SET NULL")
    )
    # What came over HTTP, as its answers repeat it: model, files, suffix, integrations, digest.
    request: Mapped[Json | None]

    state: Mapped[str] = mapped_column(server_default="pending")
    stage: Mapped[str] = mapped_column(server_default="preprocess")
    # Raised by one at each placement; every later write of an attempt carries it.
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    stop_requested: Mapped[str | None]
    stop_requested_at: Mapped[Instant | None]
    # Losses since the last new checkpoint; at `max_losses` the job fails.
    losses: Mapped[int] = mapped_column(server_default="0")
    # Smaller micro-batch after running out of memory: {batch_size, gradient_accumulation}.
    overrides: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))

    # What preprocessing found: the verdict, and where the prepared data lies.
    verdict: Mapped[Json | None]
    prepared_url: Mapped[str | None]
    data_digest: Mapped[str | None]
    base_revision: Mapped[str | None]  # resolved commit, or digest of a folder's config and weights

    # Progress, written in batches by the fence's holder.
    step: Mapped[int] = mapped_column(server_default="0")
    total_steps: Mapped[int | None]
    epoch: Mapped[float | None]
    train_loss: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    trained_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    progress_at: Mapped[Instant | None]
    activity: Mapped[str | None]  # what it does right now, in words: "loading the base model"

    adapter_url: Mapped[str | None]
    result: Mapped[Json | None]  # summary of the run: losses, evaluation, versions, seconds
    error: Mapped[Json | None]  # CeloraError.record()
    gpu_seconds: Mapped[float] = mapped_column(server_default="0")
    cost: Mapped[float | None]  # of its GPU time, set soon after its end; none: no price is known
    # Work of each stage, over all attempts that ended; none before the first.
    preprocess_seconds: Mapped[float | None]
    train_seconds: Mapped[float | None]
    evaluate_seconds: Mapped[float | None]
    # `gpu_seconds` at the last explicit retry: the time limit counts from there.
    gpu_seconds_before_retry: Mapped[float] = mapped_column(server_default="0")

    created_at: Mapped[Created]
    # Since when it waits for a GPU (until prepared: since it was submitted). Kept when an attempt
    # is lost or preempted, so that the job keeps its place.
    queued_at: Mapped[Instant] = mapped_column(server_default=func.now())
    # Its place within its lane: the earliest goes first. `queued_at`, moved ahead by the priority:
    # as waiting counts linearly, the order of two jobs never changes, and an index serves.
    turn_at: Mapped[Instant] = mapped_column(server_default=func.now())
    started_at: Mapped[Instant | None]  # first claim by a GPU worker
    finished_at: Mapped[Instant | None]

    tenant: Mapped[Tenant] = relationship(lazy="joined", innerjoin=True)

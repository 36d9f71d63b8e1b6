"""Foundation: tenants, jobs, GPUs, attempts and their tickets, and what runs leave behind."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "tenants",
    "jobs",
    "gpus",
    "gpu_samples",
    "attempts",
    "outbox",
    "events",
    "log_lines",
    "metrics",
    "counters",
    "checkpoints",
    "artifacts",
    "evaluations",
    "samples",
)


def upgrade() -> None:
    _tenants()
    _jobs()
    _gpus()
    _attempts()
    _history()
    _products()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)


def _row_id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False)


def _job_id() -> sa.Column[str]:
    return sa.Column("job_id", sa.Text(collation="C"), nullable=False)


def _created(name: str) -> sa.Column[datetime]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _tenants() -> None:
    op.create_table(
        "tenants",
        _row_id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("usage_gpu_seconds", sa.Double(), server_default="0", nullable=False),
        _created("usage_at"),
        _created("created_at"),
        sa.CheckConstraint("weight > 0", name=op.f("ck_tenants_weight_positive")),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("spec", postgresql.JSONB(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("stage", sa.Text(), server_default="preprocess", nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stop_requested", sa.Text()),
        sa.Column("stop_requested_at", sa.DateTime(timezone=True)),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "overrides", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("verdict", postgresql.JSONB()),
        sa.Column("prepared_url", sa.Text()),
        sa.Column("data_digest", sa.Text()),
        sa.Column("base_revision", sa.Text()),
        sa.Column("step", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_steps", sa.Integer()),
        sa.Column("epoch", sa.Double()),
        sa.Column("train_loss", sa.Double()),
        sa.Column("tokens_per_second", sa.Double()),
        sa.Column("trained_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("progress_at", sa.DateTime(timezone=True)),
        sa.Column("activity", sa.Text()),
        sa.Column("adapter_url", sa.Text()),
        sa.Column("result", postgresql.JSONB()),
        sa.Column("error", postgresql.JSONB()),
        sa.Column("gpu_seconds", sa.Double(), server_default="0", nullable=False),
        sa.Column("gpu_seconds_before_retry", sa.Double(), server_default="0", nullable=False),
        _created("created_at"),
        _created("queued_at"),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "stage IN ('preprocess', 'train', 'evaluate')", name=op.f("ck_jobs_stage_known")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'queued', 'running', 'paused',"
            " 'completed', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state_known"),
        ),
        sa.CheckConstraint(
            "stop_requested IN ('cancel', 'pause', 'preempt', 'drain')",
            name=op.f("ck_jobs_stop_known"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_jobs_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        postgresql_with={"fillfactor": 80},
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index(
        "ix_jobs_pending",
        "jobs",
        ["tenant_id", sa.text("priority DESC"), "queued_at", "id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        ["tenant_id", sa.text("priority DESC"), "queued_at", "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_running", "jobs", ["id"], postgresql_where=sa.text("state = 'running'")
    )
    op.create_index("ix_jobs_tenant_id_created_at_id", "jobs", ["tenant_id", "created_at", "id"])
    op.create_index(
        "uq_jobs_tenant_id_idempotency_key", "jobs", ["tenant_id", "idempotency_key"], unique=True
    )


def _gpus() -> None:
    op.create_table(
        "gpus",
        _row_id(),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("worker_session", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("reported", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True)),
        sa.Column("loaded_base", sa.Text()),
        sa.Column("trainer_pid", sa.Integer()),
        sa.Column("cordoned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "labels", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "versions", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        _created("first_seen_at"),
        sa.CheckConstraint("kind IN ('cuda', 'cpu')", name=op.f("ck_gpus_kind_known")),
        sa.CheckConstraint(
            "reported IN ('idle', 'busy', 'unknown', 'held')", name=op.f("ck_gpus_reported_known")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_gpus"),
        sa.UniqueConstraint("host", "index", name="uq_gpus_host_index"),
        sa.UniqueConstraint("uuid", name="uq_gpus_uuid"),
    )
    op.create_table(
        "gpu_samples",
        sa.Column("gpu_id", sa.BigInteger(), nullable=False),
        sa.Column("sampled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("utilisation_percent", sa.Double()),
        sa.Column("memory_used_bytes", sa.BigInteger()),
        sa.Column("temperature_celsius", sa.Double()),
        sa.Column("power_watts", sa.Double()),
        sa.PrimaryKeyConstraint("gpu_id", "sampled_at", name="pk_gpu_samples"),
    )


def _attempts() -> None:
    op.create_table(
        "attempts",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("gpu_id", sa.BigInteger()),
        sa.Column("first_stage", sa.Text(), nullable=False),
        sa.Column(
            "claimed_stages",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
        ),
        sa.Column("worker", sa.Text()),
        sa.Column("worker_session", sa.Text()),
        sa.Column("trainer_pid", sa.Integer()),
        sa.Column("trainer_warm", sa.Boolean()),
        sa.Column(
            "placed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("claimed_at", sa.DateTime(timezone=True)),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("stage_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("start_step", sa.Integer()),
        sa.Column("end_step", sa.Integer()),
        sa.ForeignKeyConstraint(["gpu_id"], ["gpus.id"], name="fk_attempts_gpu_id"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_attempts_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.UniqueConstraint("job_id", "fence", name="uq_attempts_job_id_fence"),
    )
    op.create_index(
        "uq_attempts_live_gpu",
        "attempts",
        ["gpu_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL AND gpu_id IS NOT NULL"),
    )
    op.create_index(
        "uq_attempts_live_job",
        "attempts",
        ["job_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "outbox",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("evaluate", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        _created("created_at"),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("send_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_job_id_fence", "outbox", ["job_id", "fence"])
    op.create_index(
        "ix_outbox_unsent", "outbox", ["id"], postgresql_where=sa.text("sent_at IS NULL")
    )


def _history() -> None:
    op.create_table(
        "events",
        _row_id(),
        _job_id(),
        _created("created_at"),
        sa.Column("level", sa.Text(), server_default="info", nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB()),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_events_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id_id", "events", ["job_id", "id"])
    op.create_table(
        "log_lines",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("logged_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_log_lines_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_log_lines"),
    )
    op.create_index("ix_log_lines_job_id_id", "log_lines", ["job_id", "id"])
    op.create_table(
        "metrics",
        _job_id(),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_metrics_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "stage", "name", "step", name="pk_metrics"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )


def _products() -> None:
    op.create_table(
        "checkpoints",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        _created("registered_at"),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_checkpoints_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("job_id", "fence", "step", name="uq_checkpoints_job_id_fence_step"),
    )
    op.create_table(
        "artifacts",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text()),
        _created("created_at"),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_artifacts_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_job_id", "artifacts", ["job_id"])
    op.create_table(
        "evaluations",
        _row_id(),
        _job_id(),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("cache_key", sa.Text()),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("generated_rows", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("perplexity", sa.Double(), nullable=False),
        sa.Column("token_accuracy", sa.Double(), nullable=False),
        sa.Column("exact_match", sa.Double()),
        sa.Column("bleu", sa.Double()),
        sa.Column("rouge_l", sa.Double()),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("answers", postgresql.JSONB()),
        _created("created_at"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_evaluations_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.UniqueConstraint("job_id", "subject", name="uq_evaluations_job_id_subject"),
    )
    op.create_index("ix_evaluations_cache_key", "evaluations", ["cache_key"])
    op.create_table(
        "samples",
        _job_id(),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("expected", sa.Text(), nullable=False),
        sa.Column("base_answer", sa.Text()),
        sa.Column("tuned_answer", sa.Text()),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_samples_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "position", name="pk_samples"),
    )

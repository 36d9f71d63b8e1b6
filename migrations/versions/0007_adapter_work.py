"""Exports and chats: jobs with another purpose, the turns of a chat, view admin.jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STAGES_BEFORE = "'preprocess', 'train', 'evaluate'"
_STAGES = f"{_STAGES_BEFORE}, 'export', 'generate'"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("purpose", sa.Text(), server_default="tune", nullable=False))
    op.add_column("jobs", sa.Column("source_job", sa.Text(collation="C")))
    op.add_column("jobs", sa.Column("work", postgresql.JSONB()))
    # Whatever reads all rows of `jobs` is left to the next step: this one holds up all work on it.
    op.create_check_constraint(
        op.f("ck_jobs_purpose_known"),
        "jobs",
        "purpose IN ('tune', 'export', 'chat')",
        postgresql_not_valid=True,
    )
    op.create_foreign_key(
        "fk_jobs_source_job",
        "jobs",
        "jobs",
        ["source_job"],
        ["id"],
        ondelete="SET NULL",
        postgresql_not_valid=True,
    )
    _check_stages(_STAGES, not_valid=True)
    _chats()
    _view(with_purpose=True)


def downgrade() -> None:
    """Exports and chats go: an earlier version could not read their rows."""
    op.drop_table("chat_turns")
    op.drop_table("chats")
    op.execute("DROP VIEW admin.jobs")
    op.execute("DELETE FROM jobs WHERE purpose <> 'tune'")
    _check_stages(_STAGES_BEFORE)
    for column in ("work", "source_job", "purpose"):
        op.drop_column("jobs", column)
    _view(with_purpose=False)


def _check_stages(stages: str, *, not_valid: bool = False) -> None:
    name = op.f("ck_jobs_stage_known")
    op.drop_constraint(name, "jobs")
    op.create_check_constraint(name, "jobs", f"stage IN ({stages})", postgresql_not_valid=not_valid)


def _chats() -> None:
    now = sa.text("now()")
    op.create_table(
        "chats",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_chats_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name="pk_chats"),
    )
    op.create_table(
        "chat_turns",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), server_default="", nullable=False),
        sa.Column("tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("asked_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "subject IN ('tuned', 'base')", name=op.f("ck_chat_turns_subject_known")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_chat_turns_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "position", name="pk_chat_turns"),
    )


def _view(*, with_purpose: bool) -> None:
    more = ", jobs.purpose, jobs.source_job" if with_purpose else ""
    op.execute(f"CREATE OR REPLACE VIEW admin.jobs AS {_JOBS.format(more=more)}")
    op.execute("COMMENT ON VIEW admin.jobs IS 'Every job, one a row.'")
    comments = _COMMENTS | (_COMMENTS_OF_PURPOSE if with_purpose else {})
    for column, comment in comments.items():
        quoted = comment.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN admin.jobs.{column} IS '{quoted}'")


_JOBS = """
    SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.user_name, jobs.state,
           jobs.stage, jobs.activity, jobs.base_model, jobs.method, jobs.priority,
           jobs.step, jobs.total_steps, jobs.train_loss, jobs.tokens_per_second,
           jobs.trained_tokens, jobs.gpu_seconds / 3600 AS gpu_hours, jobs.cost,
           extract(epoch FROM jobs.started_at - jobs.queued_at)::float8 AS waited_seconds,
           jobs.error ->> 'code' AS error_code, jobs.error ->> 'message' AS error_message,
           jobs.data_digest, jobs.base_revision, jobs.adapter_url,
           jobs.created_at, jobs.queued_at, jobs.started_at, jobs.finished_at{more}
    FROM jobs JOIN tenants ON tenants.id = jobs.tenant_id
"""
_COMMENTS = {
    "job": "Id of the job.",
    "name": "Name that its owner gave it.",
    "tenant": "Tenant that it belongs to.",
    "user_name": "User who submitted it.",
    "state": "pending, queued, running, paused, completed, failed or cancelled.",
    "stage": "First stage that is not finished: preprocess, train or evaluate.",
    "activity": "What it does right now, in words.",
    "base_model": "Base model that it tunes.",
    "method": "lora, qlora or full.",
    "priority": "Higher goes first within its tenant; waiting counts as well.",
    "step": "Optimizer steps done.",
    "total_steps": "Optimizer steps in all. NULL: not known yet.",
    "train_loss": "Loss of the newest step on record.",
    "tokens_per_second": "Training pace of the newest step on record.",
    "trained_tokens": "Tokens that were trained on.",
    "gpu_hours": "GPU time that its attempts held; the present one is not counted yet.",
    "cost": "Of its GPU time, set soon after its end. NULL: no price, or not ended.",
    "waited_seconds": "From its last queueing to its first start. NULL: not started;"
    " negative: it was put back and queued again after that start.",
    "error_code": "Kind of its failure.",
    "error_message": "What happened.",
    "data_digest": "Digest of the prepared data: equal digests, equal data and settings.",
    "base_revision": "Commit on the hub, or digest of the folder, of the base model.",
    "adapter_url": "Where the adapter (for method full the model) lies.",
    "created_at": "When it was submitted.",
    "queued_at": "Since when it waits for a GPU, or last did.",
    "started_at": "When a GPU worker first took it.",
    "finished_at": "When it ended.",
}
_COMMENTS_OF_PURPOSE = {
    "stage": "First stage that is not finished: preprocess, train or evaluate; export or generate"
    " for another purpose than tune.",
    "base_model": "Base model that it tunes, or whose adapter it exports or talks to.",
    "purpose": "tune, export or chat.",
    "source_job": "Of an export or a chat: the job that trained the adapter.",
}

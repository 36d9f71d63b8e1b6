"""Targets that hear of jobs, and the messages to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Of the step before. A validation holds up nobody; at a million jobs it takes seconds.
    for name in ("ck_jobs_purpose_known", "fk_jobs_source_job", "ck_jobs_stage_known"):
        op.execute(f"ALTER TABLE jobs VALIDATE CONSTRAINT {name}")
    _targets()
    _deliveries()
    # Each of these holds up what writes jobs for about a second at a million of them.
    op.create_index(
        "ix_jobs_source_job",
        "jobs",
        ["source_job"],
        postgresql_where=sa.text("source_job IS NOT NULL"),
    )
    # Jobs that wait for a GPU, those that wait longest first.
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["tenant_id", "queued_at"],
        postgresql_where=sa.text("state IN ('pending', 'queued') AND waits_for IS NULL"),
    )
    op.execute(f"CREATE VIEW admin.deliveries AS {DELIVERIES}")
    op.execute(f"COMMENT ON VIEW admin.deliveries IS {_quoted(ABOUT)}")
    for column, comment in COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN admin.deliveries.{column} IS {_quoted(comment)}")


def downgrade() -> None:
    op.execute("DROP VIEW admin.deliveries")
    op.drop_index("ix_jobs_waiting", "jobs")
    op.drop_index("ix_jobs_source_job", "jobs")
    for table in ("deliveries", "job_targets", "notification_targets"):
        op.drop_table(table)


def _instant(name: str, *, default: str | None = None) -> sa.Column[object]:
    """A moment; one with a default is always there."""
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=None if default is None else sa.text(default),
        nullable=default is None,
    )


def _targets() -> None:
    op.create_table(
        "notification_targets",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), server_default="celora", nullable=False),
        sa.Column("sealed_url", sa.Text()),
        sa.Column("sealed_secret", sa.Text()),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("events", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("wait_seconds", sa.Double(), nullable=False),
        sa.Column("budget_percent", sa.Double(), nullable=False),
        _instant("waits_seen_until"),
        _instant("created_at", default="now()"),
        sa.Column("created_by", sa.Text(), nullable=False),
        _instant("removed_at"),
        _instant("busy_until"),
        sa.Column("sendings", sa.BigInteger(), server_default="0", nullable=False),
        _instant("tried_at"),
        sa.CheckConstraint(
            "kind IN ('webhook', 'apprise')", name=op.f("ck_notification_targets_kind_known")
        ),
        sa.CheckConstraint(
            "format IN ('celora', 'openai')", name=op.f("ck_notification_targets_format_known")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name="fk_notification_targets_tenant_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_notification_targets"),
    )
    op.create_index(
        "uq_notification_targets_name",
        "notification_targets",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("removed_at IS NULL"),
    )
    op.create_table(
        "job_targets",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("wait_seconds", sa.Double()),
        _instant("look_at"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_job_targets_job_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["target_id"],
            ["notification_targets.id"],
            name="fk_job_targets_target_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "target_id", name="pk_job_targets"),
    )
    op.create_index(
        "ix_job_targets_look_at",
        "job_targets",
        ["look_at"],
        postgresql_where=sa.text("look_at IS NOT NULL"),
    )
    op.create_index("ix_job_targets_target_id", "job_targets", ["target_id"])


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Text(collation="C")),
        sa.Column("notice", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column("once_key", sa.Text()),
        _instant("created_at", default="now()"),
        sa.Column("state", sa.Text(), server_default="waiting", nullable=False),
        _instant("next_at", default="clock_timestamp()"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        _instant("tried_at"),
        sa.Column("status", sa.Integer()),
        sa.Column("cause", sa.Text()),
        _instant("ended_at"),
        sa.CheckConstraint(
            "state IN ('waiting', 'delivered', 'failed', 'dropped')",
            name=op.f("ck_deliveries_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["target_id"],
            ["notification_targets.id"],
            name="fk_deliveries_target_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_deliveries_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint("message_id", name="uq_deliveries_message_id"),
    )
    for name, columns, where in (
        ("ix_deliveries_due", ["target_id", "next_at", "id"], "state = 'waiting'"),
        ("ix_deliveries_job_id", ["job_id"], "job_id IS NOT NULL"),
        ("ix_deliveries_target_id_id", ["target_id", "id"], None),
        ("ix_deliveries_ended_at", ["ended_at"], "ended_at IS NOT NULL"),
    ):
        op.create_index(
            name,
            "deliveries",
            columns,
            postgresql_where=None if where is None else sa.text(where),
        )
    op.create_index(
        "uq_deliveries_target_id_once_key",
        "deliveries",
        ["target_id", "once_key"],
        unique=True,
        postgresql_where=sa.text("once_key IS NOT NULL"),
    )


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


ABOUT = "Messages about jobs, one a row: to whom, how often tried, what came of it."
DELIVERIES = """
    SELECT deliveries.id AS delivery, tenants.name AS tenant, targets.name AS target,
           targets.kind, targets.shown AS address, deliveries.notice, deliveries.job_id AS job,
           deliveries.state, deliveries.attempts, deliveries.status, deliveries.cause,
           deliveries.created_at, deliveries.tried_at,
           CASE WHEN deliveries.state = 'waiting' THEN deliveries.next_at END AS next_try_at,
           deliveries.ended_at
    FROM deliveries
    JOIN notification_targets AS targets ON targets.id = deliveries.target_id
    JOIN tenants ON tenants.id = targets.tenant_id
"""
COMMENTS = {
    "delivery": "Number of the message.",
    "tenant": "Tenant that the target belongs to.",
    "target": "Name of the target.",
    "kind": "webhook or apprise.",
    "address": "Where it leads, without what must stay secret.",
    "notice": "What it tells of: started, completed, failed, cancelled, waiting, budget or test.",
    "job": "Job that it tells of; NULL for a budget or a test.",
    "state": "waiting (to be tried), delivered, failed (given up) or dropped (target removed).",
    "attempts": "How often it was tried.",
    "status": "HTTP status of the last answer; NULL where there was none.",
    "cause": "Why the last try did not succeed.",
    "created_at": "When what it tells of happened.",
    "tried_at": "When it was last tried.",
    "next_try_at": "When it is tried next; NULL once it is over.",
    "ended_at": "When it was delivered, given up or dropped.",
}

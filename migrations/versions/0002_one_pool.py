"""One pool: users, limits, what jobs ask of a GPU, the lanes they queue in, forecasts, storage.

No row is rewritten here: jobs that wait get their lane from the dispatcher's next pass.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in _tenant_columns():
        op.add_column("tenants", column)
    _users()
    _lanes()
    _jobs()
    op.add_column("attempts", sa.Column("preempted_for", sa.Text(collation="C")))
    op.create_index(
        "ix_attempts_preempted_for",
        "attempts",
        ["preempted_for"],
        postgresql_where=sa.text("preempted_for IS NOT NULL"),
    )
    _forecasts()
    _storage()


def downgrade() -> None:
    op.drop_index("ix_jobs_prepared_url", "jobs")
    op.drop_index("ix_checkpoints_standing", "checkpoints")
    op.drop_table("prepared_data")
    op.drop_table("forecasts")
    op.drop_index("ix_attempts_preempted_for", "attempts")
    op.drop_column("attempts", "preempted_for")
    for index in ("queued_turn", "pending_turn", "without_lane", "waits_for"):
        op.drop_index(f"ix_jobs_{index}", "jobs")
    for column in ("lane_id", "waits_for", "turn_at"):
        op.drop_column("jobs", column)
    for name, state in (("queue", "queued"), ("pending", "pending")):
        op.create_index(
            f"ix_jobs_{name}",
            "jobs",
            ["tenant_id", sa.text("priority DESC"), "queued_at", "id"],
            postgresql_where=sa.text(f"state = '{state}'"),
        )
    for table in ("lanes", "gpu_needs", "usage_days", "users"):
        op.drop_table(table)
    for column in reversed(_tenant_columns()):
        op.drop_column("tenants", column.name)


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_running_jobs", sa.Integer()),
        sa.Column("max_queued_jobs", sa.Integer()),
        sa.Column("gpu_hours_per_month", sa.Double()),
        sa.Column("disk_bytes", sa.BigInteger()),
        sa.Column("disk_used_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_users_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_users_tenant_id_name"),
    )
    op.create_table(
        "usage_days",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_usage_days_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "day", name="pk_usage_days"),
    )


def _lanes() -> None:
    op.create_table(
        "gpu_needs",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column(
            "labels", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_gpu_needs"),
        sa.UniqueConstraint("key", name="uq_gpu_needs_key"),
    )
    op.create_table(
        "lanes",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("need_id", sa.BigInteger(), nullable=False),
        sa.Column("urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_lanes_tenant_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_lanes_user_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["need_id"], ["gpu_needs.id"], name="fk_lanes_need_id"),
        sa.PrimaryKeyConstraint("id", name="pk_lanes"),
    )
    op.create_index("ix_lanes_tenant_id_urgent", "lanes", ["tenant_id", "urgent"])
    op.create_index(
        "uq_lanes_user_id_need_id_urgent", "lanes", ["user_id", "need_id", "urgent"], unique=True
    )


def _jobs() -> None:
    op.add_column("jobs", sa.Column("lane_id", sa.BigInteger()))
    op.add_column("jobs", sa.Column("waits_for", sa.Text(collation="C")))
    op.add_column(
        "jobs",
        sa.Column(
            "turn_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
    )
    op.create_foreign_key("fk_jobs_lane_id", "jobs", "lanes", ["lane_id"], ["id"])
    op.create_foreign_key(
        "fk_jobs_waits_for", "jobs", "jobs", ["waits_for"], ["id"], ondelete="SET NULL"
    )
    op.drop_index("ix_jobs_queue", "jobs")
    op.drop_index("ix_jobs_pending", "jobs")
    turn = ["lane_id", "turn_at", "id"]
    op.create_index(
        "ix_jobs_queued_turn",
        "jobs",
        turn,
        postgresql_where=sa.text("state = 'queued' AND waits_for IS NULL"),
    )
    op.create_index(
        "ix_jobs_pending_turn", "jobs", turn, postgresql_where=sa.text("state = 'pending'")
    )
    op.create_index(
        "ix_jobs_without_lane",
        "jobs",
        ["id"],
        postgresql_where=sa.text("lane_id IS NULL AND state IN ('pending', 'queued')"),
    )
    op.create_index(
        "ix_jobs_waits_for",
        "jobs",
        ["waits_for"],
        postgresql_where=sa.text("waits_for IS NOT NULL"),
    )


def _forecasts() -> None:
    op.create_table(
        "forecasts",
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("position", sa.Integer()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("expected_start_at", sa.DateTime(timezone=True)),
        sa.Column("basis", sa.Text()),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_forecasts_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name="pk_forecasts"),
    )


def _storage() -> None:
    op.create_table(
        "prepared_data",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        *(
            sa.Column(
                name,
                sa.DateTime(timezone=True),
                server_default=sa.text("now()"),
                nullable=False,
            )
            for name in ("created_at", "last_used_at")
        ),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("digest", name="pk_prepared_data"),
    )
    op.create_index(
        "ix_checkpoints_standing",
        "checkpoints",
        ["job_id"],
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_jobs_prepared_url",
        "jobs",
        ["prepared_url"],
        postgresql_where=sa.text("prepared_url IS NOT NULL"),
    )


def _tenant_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("max_running_jobs", sa.Integer()),
        sa.Column("max_queued_jobs", sa.Integer()),
        sa.Column("gpu_hours_per_month", sa.Double()),
        sa.Column("disk_bytes", sa.BigInteger()),
        sa.Column("user_max_running_jobs", sa.Integer()),
        sa.Column("user_max_queued_jobs", sa.Integer()),
        sa.Column("user_gpu_hours_per_month", sa.Double()),
        sa.Column("user_disk_bytes", sa.BigInteger()),
        sa.Column("may_preempt", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column(
            "retention", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
    )

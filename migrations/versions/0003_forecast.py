"""When a job will start: how long a tenant's jobs take, an index for paces, view admin.queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("attempt_gpu_seconds", sa.Double()))
    op.create_index(
        "ix_attempts_completed",
        "attempts",
        ["ended_at"],
        postgresql_where=sa.text("outcome = 'completed' AND gpu_id IS NOT NULL"),
    )
    op.execute("CREATE SCHEMA IF NOT EXISTS admin")
    op.execute(_QUEUE)
    op.execute(f"COMMENT ON VIEW admin.queue IS {_quoted(_ABOUT)}")
    for column, comment in _COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN admin.queue.{column} IS {_quoted(comment)}")


def downgrade() -> None:
    op.execute("DROP VIEW admin.queue")
    op.execute("DROP SCHEMA admin")
    op.drop_index("ix_attempts_completed", "attempts")
    op.drop_column("tenants", "attempt_gpu_seconds")


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


# The three arms of the condition are those of the partial indexes: a table of a million finished
# jobs is not read.
_QUEUE = """
    CREATE VIEW admin.queue AS
    SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.user_name, jobs.state,
           jobs.priority, coalesce(lanes.urgent, false) AS urgent,
           CASE WHEN live.id IS NULL THEN forecasts.position END AS position,
           CASE WHEN live.id IS NOT NULL AND jobs.state = 'queued' THEN 'placed'
                WHEN live.claimed_at IS NOT NULL THEN 'preparing'
                WHEN jobs.state = 'pending' THEN coalesce(forecasts.reason, 'to_prepare')
                WHEN jobs.waits_for IS NOT NULL THEN 'waits_for'
                ELSE forecasts.reason
           END AS reason,
           CASE WHEN live.id IS NULL THEN forecasts.sentence END AS sentence,
           CASE WHEN live.id IS NULL THEN forecasts.expected_start_at END AS expected_start_at,
           CASE WHEN live.id IS NULL THEN forecasts.basis END AS basis,
           extract(epoch FROM statement_timestamp() - jobs.queued_at)::float8 AS waiting_seconds,
           jobs.base_model, jobs.method,
           coalesce(nullif(concat_ws(
               ', ',
               CASE WHEN gpu_needs.memory_bytes > 0
                    THEN trim_scale(gpu_needs.memory_bytes / 1e9) || ' GB' END,
               gpu_needs.model,
               (SELECT string_agg(key || '=' || value, ', ' ORDER BY key)
                FROM jsonb_each_text(gpu_needs.labels))
           ), ''), 'any GPU') AS needs,
           forecasts.made_at AS forecast_made_at
    FROM jobs
    JOIN tenants ON tenants.id = jobs.tenant_id
    LEFT JOIN lanes ON lanes.id = jobs.lane_id
    LEFT JOIN gpu_needs ON gpu_needs.id = lanes.need_id
    LEFT JOIN attempts AS live ON live.job_id = jobs.id AND live.ended_at IS NULL
    LEFT JOIN forecasts ON forecasts.job_id = jobs.id
    WHERE (jobs.state = 'queued' AND jobs.waits_for IS NULL)
       OR (jobs.state = 'pending')
       OR (jobs.state = 'queued' AND jobs.waits_for IS NOT NULL)
"""

_ABOUT = "Jobs that wait to be prepared or for a GPU. Sort by position for the dispatcher's order."

_COMMENTS = {
    "job": "Id of the job.",
    "name": "Name that its owner gave it.",
    "tenant": "Tenant that it belongs to.",
    "user_name": "User who submitted it.",
    "state": "pending: its data is not prepared yet; queued: it waits for a GPU.",
    "priority": "Higher goes first within its tenant; waiting counts as well.",
    "urgent": "Goes before all that are not, and may take the GPU of a preemptible job.",
    "position": "From 1, in the order in which the dispatcher would place from now on. NULL: it"
    " cannot be placed as things stand, or is not among the first thousand; `celora why` tells.",
    "reason": "Why it waits, as a code (docs/fairness.md lists them). NULL: not among the first"
    " thousand.",
    "sentence": "Why it waits, in words.",
    "expected_start_at": "When it is expected to start. NULL: unknown.",
    "basis": "What the expectation rests on, in words.",
    "waiting_seconds": "How long it has waited: since it was prepared, or else submitted.",
    "base_model": "Base model that it tunes.",
    "method": "lora, qlora or full.",
    "needs": "What it asks of a GPU, in words.",
    "forecast_made_at": "When position, reason and expectation were computed.",
}

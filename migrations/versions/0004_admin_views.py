"""What administrators read: prices, counts by day, and the other views of schema admin."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _rollups()
    op.add_column("jobs", sa.Column("cost", sa.Double()))
    for column in ("finished_at", "started_at"):
        where = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_jobs_{column}", "jobs", [column], postgresql_where=where)
    op.create_index(
        "ix_attempts_ended_at",
        "attempts",
        ["ended_at"],
        postgresql_where=sa.text("ended_at IS NOT NULL AND gpu_id IS NOT NULL"),
    )
    for name, (about, body, comments) in VIEWS.items():
        op.execute(f"CREATE VIEW admin.{name} AS {body}")
        op.execute(f"COMMENT ON VIEW admin.{name} IS {_quoted(about)}")
        for column, comment in comments.items():
            op.execute(f"COMMENT ON COLUMN admin.{name}.{column} IS {_quoted(comment)}")


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW admin.{name}")
    op.drop_index("ix_attempts_ended_at", "attempts")
    for column in ("finished_at", "started_at"):
        op.drop_index(f"ix_jobs_{column}", "jobs")
    op.drop_column("jobs", "cost")
    for table in ("gpu_prices", "best_evaluations", "wait_days", "tenant_days"):
        op.drop_table(table)


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


def _rollups() -> None:
    op.create_table(
        "tenant_days",
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("jobs_completed", sa.Integer(), nullable=False),
        sa.Column("jobs_failed", sa.Integer(), nullable=False),
        sa.Column("jobs_cancelled", sa.Integer(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("trained_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_tenant_days_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "day", name="pk_tenant_days"),
    )
    op.create_table(
        "wait_days",
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_wait_days_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "priority", "day", "bucket", name="pk_wait_days"),
    )
    op.create_table(
        "best_evaluations",
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("data_digest", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(collation="C"), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_best_evaluations_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("base_model", "data_digest", name="pk_best_evaluations"),
    )
    op.create_table(
        "gpu_prices",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("price_per_hour", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("price_per_hour >= 0", name=op.f("ck_gpu_prices_price_not_negative")),
        sa.PrimaryKeyConstraint("model", name="pk_gpu_prices"),
    )


# Name → what it shows, its query, and what each column means.
VIEWS: dict[str, tuple[str, str, dict[str, str]]] = {
    "jobs": (
        "Every job, one a row.",
        """
        SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.user_name, jobs.state,
               jobs.stage, jobs.activity, jobs.base_model, jobs.method, jobs.priority,
               jobs.step, jobs.total_steps, jobs.train_loss, jobs.tokens_per_second,
               jobs.trained_tokens, jobs.gpu_seconds / 3600 AS gpu_hours, jobs.cost,
               extract(epoch FROM jobs.started_at - jobs.queued_at)::float8 AS waited_seconds,
               jobs.error ->> 'code' AS error_code, jobs.error ->> 'message' AS error_message,
               jobs.data_digest, jobs.base_revision, jobs.adapter_url,
               jobs.created_at, jobs.queued_at, jobs.started_at, jobs.finished_at
        FROM jobs JOIN tenants ON tenants.id = jobs.tenant_id
        """,
        {
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
        },
    ),
    "gpus": (
        "Every GPU and CPU slot that has ever reported.",
        """
        SELECT gpus.host, gpus.index, gpus.model, gpus.memory_bytes,
               CASE WHEN gpus.stopped_at IS NOT NULL
                         OR gpus.heartbeat_at < statement_timestamp() - interval '30 seconds'
                    THEN 'stale'
                    WHEN live.claimed_at IS NOT NULL THEN 'busy'
                    WHEN live.job_id IS NOT NULL THEN 'placed'
                    WHEN gpus.reported <> 'idle' THEN gpus.reported
                    WHEN gpus.cordoned THEN 'cordoned'
                    ELSE 'free' END AS state,
               gpus.reason, live.job_id AS job, tenants.name AS tenant, gpus.loaded_base,
               gpus.cordoned, gpus.labels, gpus.worker, gpus.heartbeat_at AS last_seen_at,
               newest.sampled_at, newest.utilisation_percent, newest.memory_used_bytes,
               newest.temperature_celsius, newest.power_watts,
               (SELECT price_per_hour FROM gpu_prices
                WHERE position(gpu_prices.model IN lower(gpus.model)) > 0
                ORDER BY length(gpu_prices.model) DESC, gpu_prices.model LIMIT 1) AS price_per_hour
        FROM gpus
        LEFT JOIN attempts AS live ON live.gpu_id = gpus.id AND live.ended_at IS NULL
        LEFT JOIN jobs ON jobs.id = live.job_id
        LEFT JOIN tenants ON tenants.id = jobs.tenant_id
        LEFT JOIN LATERAL (
            SELECT * FROM gpu_samples WHERE gpu_samples.gpu_id = gpus.id
            ORDER BY sampled_at DESC LIMIT 1
        ) AS newest ON true
        """,
        {
            "host": "Machine that it is in.",
            "index": "Its number there; MIG slices from 1000.",
            "model": "Model, as the driver names it.",
            "memory_bytes": "Memory in all.",
            "state": "stale (no heartbeat for 30 seconds), busy, placed, held (a foreign process"
            " uses it), unknown, cordoned or free.",
            "reason": "Why its worker reports what it reports.",
            "job": "Job that it runs, or that is on its way to it.",
            "tenant": "Tenant of that job.",
            "loaded_base": "Base model that the warm trainer has in memory.",
            "cordoned": "Takes no new jobs.",
            "labels": "Labels that jobs may ask for.",
            "worker": "Celery worker that drives it.",
            "last_seen_at": "Its newest heartbeat.",
            "sampled_at": "When the figures that follow were taken.",
            "utilisation_percent": "Of the GPU; of a CPU slot, the trainer's use of its cores.",
            "memory_used_bytes": "Memory in use.",
            "temperature_celsius": "Temperature. NULL: not told.",
            "power_watts": "Power drawn. NULL: not told.",
            "price_per_hour": "What an hour costs. NULL: no price is set.",
        },
    ),
    "tenant_usage": (
        "What each tenant used, by day (UTC). Counted every minute.",
        """
        SELECT day, tenants.name AS tenant, jobs_completed, jobs_failed, jobs_cancelled,
               gpu_seconds / 3600 AS gpu_hours, trained_tokens, cost,
               coalesce(gpu_seconds / nullif(sum(gpu_seconds) OVER (PARTITION BY day), 0), 0)
                   AS share
        FROM tenant_days JOIN tenants ON tenants.id = tenant_days.tenant_id
        """,
        {
            "day": "Day (UTC) on which jobs and attempts ended.",
            "tenant": "Name of the tenant.",
            "jobs_completed": "Jobs that completed.",
            "jobs_failed": "Jobs that failed.",
            "jobs_cancelled": "Jobs that were cancelled.",
            "gpu_hours": "GPU time of the attempts that ended.",
            "trained_tokens": "Tokens that the ended jobs had trained on.",
            "cost": "Of that GPU time, at the prices of that day.",
            "share": "Its part, 0 to 1, of the GPU time of all tenants on that day.",
        },
    ),
    "wait_times": (
        "How long jobs waited for their first GPU in the last 30 days; 5 % off at most.",
        """
        WITH counted AS (
            SELECT tenant_id, priority, bucket, sum(jobs) AS jobs
            FROM wait_days
            WHERE day > (statement_timestamp() AT TIME ZONE 'UTC')::date - 30
            GROUP BY tenant_id, priority, bucket
        ), ranked AS (
            SELECT *, sum(jobs) OVER (PARTITION BY tenant_id, priority ORDER BY bucket) AS so_far,
                   sum(jobs) OVER (PARTITION BY tenant_id, priority) AS all_jobs
            FROM counted
        )
        SELECT tenants.name AS tenant, priority, max(all_jobs)::bigint AS jobs,
               power(1.1, min(bucket) FILTER (WHERE so_far >= 0.5 * all_jobs) + 0.5)::float8 - 1
                   AS p50_seconds,
               power(1.1, min(bucket) FILTER (WHERE so_far >= 0.95 * all_jobs) + 0.5)::float8 - 1
                   AS p95_seconds
        FROM ranked JOIN tenants ON tenants.id = ranked.tenant_id
        GROUP BY tenants.name, priority
        """,
        {
            "tenant": "Name of the tenant.",
            "priority": "Priority of the jobs.",
            "jobs": "Jobs that started.",
            "p50_seconds": "Half of them waited no longer.",
            "p95_seconds": "Nineteen of twenty waited no longer.",
        },
    ),
    "failures": (
        "Why jobs failed, by cause, with the newest example.",
        """
        SELECT error ->> 'code' AS code, error ->> 'where' AS place, count(*) AS jobs,
               count(DISTINCT tenant_id) AS tenants,
               (array_agg(error ->> 'message' ORDER BY finished_at DESC))[1] AS example,
               (array_agg(id ORDER BY finished_at DESC))[1] AS example_job,
               min(finished_at) AS first_at, max(finished_at) AS last_at
        FROM jobs WHERE state = 'failed' AND finished_at IS NOT NULL
        GROUP BY 1, 2
        """,
        {
            "code": "Kind of the failure.",
            "place": "Where: a field, a file, a step. NULL: nowhere in particular.",
            "jobs": "Jobs that failed so and were not run again.",
            "tenants": "Tenants whose jobs these are.",
            "example": "Message of the newest one.",
            "example_job": "Id of the newest one.",
            "first_at": "When the oldest of them failed.",
            "last_at": "When the newest of them failed.",
        },
    ),
    "training_curves": (
        "What was measured at each optimizer step. Ask for one job at a time.",
        """
        SELECT job_id AS job, stage, step,
               max(value) FILTER (WHERE name = 'train_loss') AS train_loss,
               max(value) FILTER (WHERE name = 'eval_loss') AS eval_loss,
               max(value) FILTER (WHERE name = 'learning_rate') AS learning_rate,
               max(value) FILTER (WHERE name = 'grad_norm') AS grad_norm,
               max(value) FILTER (WHERE name = 'tokens_per_second') AS tokens_per_second,
               max(value) FILTER (WHERE name = 'token_accuracy') AS token_accuracy,
               max(value) FILTER (WHERE name = 'epoch') AS epoch,
               max(value) FILTER (WHERE name = 'memory_bytes') AS memory_bytes,
               max(recorded_at) AS recorded_at
        FROM metrics
        GROUP BY job_id, stage, step
        """,
        {
            "job": "Id of the job.",
            "stage": "train or evaluate.",
            "step": "Optimizer step, from 1.",
            "train_loss": "Mean loss of the step's tokens.",
            "eval_loss": "Loss on held-out rows, where it was taken.",
            "learning_rate": "Learning rate.",
            "grad_norm": "Norm of the gradient before clipping.",
            "tokens_per_second": "Training pace.",
            "token_accuracy": "Part of the tokens that were predicted right, 0 to 1.",
            "epoch": "Passes over the data so far.",
            "memory_bytes": "Most device memory so far; on a CPU, resident memory.",
            "recorded_at": "When it was written.",
        },
    ),
    "evaluations": (
        "Base against tuned model on held-out rows, one job a row.",
        """
        SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.base_model, jobs.method,
               jobs.data_digest, tuned.rows, base.loss AS base_loss, tuned.loss AS tuned_loss,
               base.perplexity AS base_perplexity, tuned.perplexity AS tuned_perplexity,
               base.token_accuracy AS base_token_accuracy,
               tuned.token_accuracy AS tuned_token_accuracy,
               base.exact_match AS base_exact_match, tuned.exact_match AS tuned_exact_match,
               base.bleu AS base_bleu, tuned.bleu AS tuned_bleu,
               base.rouge_l AS base_rouge_l, tuned.rouge_l AS tuned_rouge_l,
               coalesce(lowest.job_id = jobs.id, false) AS best, tuned.created_at AS evaluated_at
        FROM evaluations AS tuned
        JOIN jobs ON jobs.id = tuned.job_id
        JOIN tenants ON tenants.id = jobs.tenant_id
        LEFT JOIN evaluations AS base ON base.job_id = tuned.job_id AND base.subject = 'base'
        LEFT JOIN best_evaluations AS lowest ON lowest.base_model = jobs.base_model
                                            AND lowest.data_digest = jobs.data_digest
        WHERE tuned.subject = 'tuned'
        """,
        {
            "job": "Id of the job.",
            "name": "Name that its owner gave it.",
            "tenant": "Tenant that it belongs to.",
            "base_model": "Base model that it tuned.",
            "method": "lora, qlora or full.",
            "data_digest": "Digest of the prepared data.",
            "rows": "Held-out rows.",
            "base_loss": "Mean loss a token, base model.",
            "tuned_loss": "Mean loss a token, tuned model.",
            "base_perplexity": "Perplexity of the base model.",
            "tuned_perplexity": "Perplexity of the tuned model.",
            "base_token_accuracy": "Tokens predicted right, 0 to 1, base model.",
            "tuned_token_accuracy": "Tokens predicted right, 0 to 1, tuned model.",
            "base_exact_match": "Answers that were right to the letter, 0 to 1, base model.",
            "tuned_exact_match": "Answers that were right to the letter, 0 to 1, tuned model.",
            "base_bleu": "BLEU, 0 to 100, base model.",
            "tuned_bleu": "BLEU, 0 to 100, tuned model.",
            "base_rouge_l": "ROUGE-L, 0 to 1, base model.",
            "tuned_rouge_l": "ROUGE-L, 0 to 1, tuned model.",
            "best": "The lowest tuned loss on this base model and data; counted every minute.",
            "evaluated_at": "When the tuned model was evaluated.",
        },
    ),
}

"""Where a job's time went, stage by stage; what devices did over time; views of both."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = ("preprocess_seconds", "train_seconds", "evaluate_seconds")


def upgrade() -> None:
    for column in COLUMNS:
        op.add_column("jobs", sa.Column(column, sa.Double()))
    op.execute(f"CREATE OR REPLACE VIEW admin.training_curves AS {_curves(with_seconds=True)}")
    op.execute(
        "COMMENT ON COLUMN admin.training_curves.step_seconds IS"
        " 'Time of each step since the last one that has this figure, without checkpoints and"
        " held-out losses.'"
    )
    for name, (about, body, comments) in VIEWS.items():
        op.execute(f"CREATE VIEW admin.{name} AS {body}")
        op.execute(f"COMMENT ON VIEW admin.{name} IS '{about}'")
        for column, comment in comments.items():
            op.execute(f"COMMENT ON COLUMN admin.{name}.{column} IS '{comment}'")


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW admin.{name}")
    op.execute("DROP VIEW admin.training_curves")
    op.execute(f"CREATE VIEW admin.training_curves AS {_curves(with_seconds=False)}")
    op.execute(f"COMMENT ON VIEW admin.training_curves IS '{_CURVES_ABOUT}'")
    for column, comment in _CURVES_COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN admin.training_curves.{column} IS '{comment}'")
    for column in COLUMNS:
        op.drop_column("jobs", column)


def _curves(*, with_seconds: bool) -> str:
    """A view keeps the order of its columns: what is new comes last."""
    more = ", max(value) FILTER (WHERE name = 'step_seconds') AS step_seconds"
    return f"""
        SELECT job_id AS job, stage, step,
               max(value) FILTER (WHERE name = 'train_loss') AS train_loss,
               max(value) FILTER (WHERE name = 'eval_loss') AS eval_loss,
               max(value) FILTER (WHERE name = 'learning_rate') AS learning_rate,
               max(value) FILTER (WHERE name = 'grad_norm') AS grad_norm,
               max(value) FILTER (WHERE name = 'tokens_per_second') AS tokens_per_second,
               max(value) FILTER (WHERE name = 'token_accuracy') AS token_accuracy,
               max(value) FILTER (WHERE name = 'epoch') AS epoch,
               max(value) FILTER (WHERE name = 'memory_bytes') AS memory_bytes,
               max(recorded_at) AS recorded_at{more if with_seconds else ""}
        FROM metrics
        GROUP BY job_id, stage, step
    """  # noqa: S608 (joined from constants)


_CURVES_ABOUT = "What was measured at each optimizer step. Ask for one job at a time."
_CURVES_COMMENTS = {
    "job": "Id of the job.",
    "stage": "train or evaluate.",
    "step": "Optimizer step, from 1.",
    "train_loss": "Mean loss of the step''s tokens.",
    "eval_loss": "Loss on held-out rows, where it was taken.",
    "learning_rate": "Learning rate.",
    "grad_norm": "Norm of the gradient before clipping.",
    "tokens_per_second": "Training pace.",
    "token_accuracy": "Part of the tokens that were predicted right, 0 to 1.",
    "epoch": "Passes over the data so far.",
    "memory_bytes": "Most device memory so far; on a CPU, resident memory.",
    "recorded_at": "When it was written.",
}

# Name → what it shows, its query, and what each column means.
VIEWS: dict[str, tuple[str, str, dict[str, str]]] = {
    "job_times": (
        "Where each job''s time went. Counted as its stages end.",
        """
        SELECT jobs.id AS job, jobs.name, tenants.name AS tenant, jobs.state,
               jobs.preprocess_seconds, jobs.train_seconds, jobs.evaluate_seconds,
               jobs.epoch AS epochs, jobs.train_seconds / nullif(jobs.epoch, 0)
                   AS seconds_per_epoch,
               jobs.trained_tokens, jobs.gpu_seconds, jobs.cost,
               jobs.created_at, jobs.finished_at
        FROM jobs JOIN tenants ON tenants.id = jobs.tenant_id
        """,
        {
            "job": "Id of the job.",
            "name": "Name that its owner gave it.",
            "tenant": "Tenant that it belongs to.",
            "state": "pending, queued, running, paused, completed, failed or cancelled.",
            "preprocess_seconds": "Work on its data, of all attempts that ended. NULL: none yet.",
            "train_seconds": "Training, with loading, checkpoints and what a lost attempt did in"
            " vain. NULL: none ended yet.",
            "evaluate_seconds": "Evaluation of base and tuned model. NULL: none ended yet.",
            "epochs": "Passes over the data so far.",
            "seconds_per_epoch": "train_seconds for each pass over the data.",
            "trained_tokens": "Tokens that were trained on.",
            "gpu_seconds": "GPU time that its attempts held; the present one is not counted yet.",
            "cost": "Of its GPU time, set soon after its end. NULL: no price, or not ended.",
            "created_at": "When it was submitted.",
            "finished_at": "When it ended.",
        },
    ),
    "gpu_samples": (
        "What each GPU and CPU slot did over time. Ask for a span of time.",
        """
        SELECT gpus.host, gpus.index, gpus.model, gpu_samples.sampled_at,
               gpu_samples.utilisation_percent, gpu_samples.memory_used_bytes,
               gpus.memory_bytes, gpu_samples.temperature_celsius, gpu_samples.power_watts
        FROM gpus JOIN gpu_samples ON gpu_samples.gpu_id = gpus.id
        """,
        {
            "host": "Machine that it is in.",
            "index": "Its number there; MIG slices from 1000.",
            "model": "Model, as the driver names it.",
            "sampled_at": "When the figures were taken.",
            "utilisation_percent": "Of the GPU; of a CPU slot, the trainer''s use of its cores.",
            "memory_used_bytes": "Memory in use.",
            "memory_bytes": "Memory in all.",
            "temperature_celsius": "Temperature. NULL: not told.",
            "power_watts": "Power drawn. NULL: not told.",
        },
    ),
}

"""What the views of schema admin cost on 100,000 jobs and 10,000,000 metric rows.

`training_curves` is asked for one job, `queue` for one tenant and for its first 1,000 rows, the
others whole. Times are the server's (EXPLAIN ANALYZE, median); `--plans` prints the plans as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import psycopg
from sqlalchemy import make_url

from benchmarks.pool import database

AIM_MS = 200.0
_ROUNDS = 5

QUESTIONS = {
    "jobs, whole": "SELECT * FROM admin.jobs",
    "queue, first 1,000": "SELECT * FROM admin.queue ORDER BY position LIMIT 1000",
    "queue, one tenant": "SELECT * FROM admin.queue WHERE tenant = 'tenant-3'",
    "gpus, whole": "SELECT * FROM admin.gpus",
    "tenant_usage, whole": "SELECT * FROM admin.tenant_usage",
    "wait_times, whole": "SELECT * FROM admin.wait_times",
    "failures, whole": "SELECT * FROM admin.failures",
    "training_curves, one job": "SELECT * FROM admin.training_curves WHERE job = 'job-17'",
    "evaluations, whole": "SELECT * FROM admin.evaluations",
    "adapters, whole": "SELECT * FROM admin.adapters",
    "job_times, whole": "SELECT * FROM admin.job_times",
    "gpu_samples, an hour": "SELECT * FROM admin.gpu_samples"
    " WHERE sampled_at > now() - interval '1 hour'",
}


def run(*, jobs: int, metrics: int, plans: bool) -> bool:
    """Print the table; True when every view answers in time."""
    with database("views") as (_, url):
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            for statement in _LOAD:
                connection.execute(statement, {"jobs": jobs, "metrics": metrics})
            connection.execute("VACUUM ANALYZE")
            slowest = 0.0
            print(f"   {jobs:,} jobs, {metrics:,} metric rows{'ms, p50':>24}")
            for name, question in QUESTIONS.items():
                times = [_milliseconds(connection, question) for _ in range(_ROUNDS + 1)]
                median = statistics.median(times[1:])
                slowest = max(slowest, median)
                print(f"   {name:<50}{median:>12.1f}")
                if plans:
                    for (line,) in connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {question}"):
                        print(f"      {line}")
    print(f"   slowest {slowest:.0f} ms (aim {AIM_MS:.0f})")
    return slowest <= AIM_MS


def _milliseconds(connection: psycopg.Connection, question: str) -> float:
    explained = connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {question}")
    row = explained.fetchone()
    assert row is not None  # noqa: S101
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return float(plan[0]["Execution Time"])


_LOAD = (
    "INSERT INTO tenants (name) SELECT 'tenant-' || n FROM generate_series(1, 20) AS n",
    "INSERT INTO users (tenant_id, name) SELECT id, 'ada' FROM tenants",
    "INSERT INTO gpu_needs (key) VALUES ('any')",
    """
    INSERT INTO lanes (tenant_id, user_id, need_id)
    SELECT tenant_id, users.id, gpu_needs.id FROM users, gpu_needs
    """,
    # One in twenty waits, one in ten has failed.
    """
    INSERT INTO jobs (id, tenant_id, user_name, spec, base_model, method, priority, state, stage,
                      lane_id, queued_at, started_at, finished_at, step, total_steps, train_loss,
                      gpu_seconds, cost, data_digest, error, epoch, train_seconds,
                      evaluate_seconds, preprocess_seconds)
    SELECT 'job-' || n, lanes.tenant_id, 'ada',
           jsonb_build_object('method', 'lora', 'rank', 16, 'dataset', repeat('x', 400)),
           'org/base-' || n %% 10, 'lora', n %% 3, state, 'train', lanes.id,
           now() - make_interval(mins => n), began, began + interval '1 hour', 1000, 1000, 1.5,
           3600, 2.5, 'digest-' || n %% 500,
           CASE WHEN state = 'failed' THEN jsonb_build_object(
               'code', 'code-' || n %% 12, 'where', 'step ' || n,
               'message', 'what happened ' || n) END,
           3, 3500, 100, 10
    FROM generate_series(1, %(jobs)s) AS n
    JOIN (SELECT *, row_number() OVER (ORDER BY id) AS place FROM lanes) AS lanes
        ON lanes.place = n %% 20 + 1
    CROSS JOIN LATERAL (SELECT CASE WHEN n %% 20 = 0 THEN 'queued' WHEN n %% 10 = 1 THEN 'failed'
                                    ELSE 'completed' END AS state) AS states
    CROSS JOIN LATERAL (SELECT CASE WHEN state <> 'queued'
                               THEN now() - make_interval(mins => n) + interval '5 minutes' END
                               AS began) AS times
    """,
    """
    INSERT INTO forecasts (job_id, position, reason, sentence, expected_start_at, made_at)
    SELECT id, row_number() OVER (ORDER BY queued_at), 'gpus_busy', 'All are busy.', now(), now()
    FROM jobs WHERE state = 'queued' LIMIT 1000
    """,
    """
    INSERT INTO metrics (job_id, stage, name, step, value, fence, recorded_at)
    SELECT 'job-' || job, 'train', name, step, 1.5, 1, now()
    FROM generate_series(1, %(metrics)s / 5000) AS job, generate_series(1, 1000) AS step,
         unnest(ARRAY['train_loss', 'grad_norm', 'learning_rate', 'epoch', 'tokens_per_second'])
             AS name
    """,
    """
    INSERT INTO evaluations (job_id, fence, subject, rows, generated_rows, loss, perplexity,
                             token_accuracy, seconds)
    SELECT id, 1, subject, 100, 0, 1.5, 4.5, 0.5, 10
    FROM jobs, unnest(ARRAY['base', 'tuned']) AS subject WHERE state = 'completed'
    """,
    # One job in fifty has been rated: fifty pairs of answers, by two people.
    """
    INSERT INTO samples (job_id, position, prompt, expected, base_answer, tuned_answer)
    SELECT id, position, 'asked', 'right', 'no idea', 'right'
    FROM (SELECT id FROM jobs WHERE state = 'completed' ORDER BY id LIMIT %(jobs)s / 50) AS rated,
         generate_series(0, 49) AS position
    """,
    """
    INSERT INTO ratings (job_id, position, person, preferred, tuned_left)
    SELECT job_id, position, person,
           (ARRAY['tuned', 'tuned', 'base', 'tie', 'skip'])[1 + position %% 5], position %% 2 = 0
    FROM samples, unnest(ARRAY['ada', 'grace']) AS person
    """,
    """
    UPDATE evaluations SET preferred_tuned = 40, preferred_base = 20, preferred_tie = 20
    WHERE subject = 'tuned' AND job_id IN (SELECT job_id FROM samples)
    """,
    # One completed job in ten has a version under a name, one version in ten an alias.
    """
    INSERT INTO artifacts (job_id, fence, kind, url, size_bytes)
    SELECT id, 1, 'adapter', '/a', 1000 FROM jobs
    WHERE state = 'completed' ORDER BY id LIMIT %(jobs)s / 10
    """,
    """
    INSERT INTO adapter_names (tenant_id, name, versions)
    SELECT id, 'bot-' || n, 0 FROM tenants, generate_series(1, 20) AS n
    """,
    """
    INSERT INTO adapters (name_id, version, job_id, artifact_id, kind, url, size_bytes, base_model,
                          method, seed, spec, code_versions, registered_by)
    SELECT adapter_names.id, row_number() OVER (PARTITION BY adapter_names.id ORDER BY jobs.id),
           jobs.id, artifacts.id, 'adapter', '/a', 1000, jobs.base_model, 'lora', 1, jobs.spec,
           '{"celora": "0.1.0"}', 'ada'
    FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
    JOIN adapter_names ON adapter_names.tenant_id = jobs.tenant_id
                      AND adapter_names.name = 'bot-' || 1 + artifacts.id %% 20
    """,
    """
    INSERT INTO adapter_aliases (name_id, alias, adapter_id)
    SELECT name_id, 'alias-' || version, id FROM adapters WHERE version %% 10 = 0
    """,
    """
    INSERT INTO best_evaluations
    SELECT DISTINCT ON (base_model, data_digest) base_model, data_digest, id, 1.5
    FROM jobs WHERE state = 'completed'
    """,
    """
    INSERT INTO gpus (host, index, uuid, kind, model, memory_bytes, queue, worker, worker_session,
                      boot_id, reported, heartbeat_at)
    SELECT 'host-' || n / 8, n %% 8, 'gpu-' || n, 'cuda', 'NVIDIA H100 80GB HBM3', 80e9, 'q', 'w',
           's', 'b', 'idle', now()
    FROM generate_series(0, 63) AS n
    """,
    """
    INSERT INTO gpu_samples
    SELECT gpus.id, now() - make_interval(secs => 5 * n), 90, 7e10, 60, 500
    FROM gpus, generate_series(1, 10000) AS n
    """,
    "INSERT INTO gpu_prices VALUES ('h100', 2.5, now()), ('a100', 1.5, now())",
    """
    INSERT INTO tenant_days
    SELECT id, current_date - n, 10, 1, 1, 36000, 1000000, 25
    FROM tenants, generate_series(0, 364) AS n
    """,
    """
    INSERT INTO wait_days
    SELECT id, priority, current_date - n, bucket, 3
    FROM tenants, generate_series(0, 364) AS n, generate_series(0, 2) AS priority,
         generate_series(0, 60, 4) AS bucket
    """,
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--metrics", type=int, default=10_000_000)
    parser.add_argument("--plans", action="store_true")
    asked = parser.parse_args()
    sys.exit(0 if run(jobs=asked.jobs, metrics=asked.metrics, plans=asked.plans) else 1)

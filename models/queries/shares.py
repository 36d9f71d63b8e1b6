"""SQL that placement and its explanations share: fair shares, and the limits that make jobs wait.

Fragments of one WITH clause, so that the dispatcher's order and what `celora why` says of it cannot
drift apart. Parameters: :placement_charge, :half_life.
"""

from __future__ import annotations

from models.settings import settings

# What a placement counts before it has used as much, in GPU-seconds, for a tenant none of whose
# jobs has ended yet; for the others it is how long theirs take. Without a charge the tenant with
# the smallest sum would get every GPU that is free at that moment, and hold them all for hours; one
# that is the same for all would outweigh all that tenants with short jobs have really used.
PLACEMENT_CHARGE_SECONDS = 60.0

# What each user holds on GPUs right now. `charged`: from the moment it is placed each attempt
# counts as long as its tenant's take, and what it has really used once that is more.
LIVE = """
    live AS MATERIALIZED (
        SELECT jobs.tenant_id, jobs.user_name, count(*) AS jobs, sum(used.seconds) AS gpu_seconds,
               sum(greatest(
                   used.seconds, coalesce(tenants.attempt_gpu_seconds, :placement_charge)
               )) AS charged
        FROM attempts
        JOIN jobs ON jobs.id = attempts.job_id
        JOIN tenants ON tenants.id = jobs.tenant_id
        CROSS JOIN LATERAL (SELECT extract(
            epoch FROM statement_timestamp() - coalesce(claimed_at, statement_timestamp())
        )::float8 AS seconds) AS used
        WHERE attempts.ended_at IS NULL AND attempts.gpu_id IS NOT NULL
        GROUP BY jobs.tenant_id, jobs.user_name
    )
"""

_MONTH_START = "date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC')::date"

# GPU-seconds since the month began, of ended attempts: of a row of `tenants`, of one of `users`.
TENANT_MONTH = f"""
    SELECT sum(usage_days.gpu_seconds) FROM usage_days
    JOIN users ON users.id = usage_days.user_id
    WHERE users.tenant_id = tenants.id AND day >= {_MONTH_START}
"""  # noqa: S608 (joined from constants)
USER_MONTH = f"""
    SELECT sum(usage_days.gpu_seconds) FROM usage_days
    WHERE usage_days.user_id = users.id AND day >= {_MONTH_START}
"""  # noqa: S608 (joined from constants)
TENANT_DISK = "SELECT sum(disk_used_bytes) FROM users WHERE users.tenant_id = tenants.id"


def _over(running: str, hours: str, disk: str, *, month: str, used: str) -> str:
    """The first limit that is reached, by name; NULL while all hold."""
    return f"""
        CASE
            WHEN {running} <= coalesce(held.jobs, 0) THEN 'max_running_jobs'
            WHEN {hours} IS NOT NULL
                AND {hours} * 3600 <= coalesce(held.gpu_seconds, 0) + coalesce(({month}), 0)
                THEN 'gpu_hours_per_month'
            WHEN {disk} IS NOT NULL AND {disk} <= coalesce({used}, 0) THEN 'disk_bytes'
        END"""


_TENANT_LIMIT = _over(
    "tenants.max_running_jobs",
    "tenants.gpu_hours_per_month",
    "tenants.disk_bytes",
    month=TENANT_MONTH,
    used=f"({TENANT_DISK})",
)

# For a row of `users` joined to its `tenants`, and to `live` as `held`.
USER_LIMIT = _over(
    "coalesce(users.max_running_jobs, tenants.user_max_running_jobs)",
    "coalesce(users.gpu_hours_per_month, tenants.user_gpu_hours_per_month)",
    "coalesce(users.disk_bytes, tenants.user_disk_bytes)",
    month=USER_MONTH,
    used="users.disk_used_bytes",
)

# A tenant's share: recent use (decayed to now) and what its live attempts are charged, over its
# weight. The smallest goes first. All at one instant, so that equal use is equal. `over_limit`
# names the tenant's limit that is reached.
SHARES = f"""
    {LIVE}, shares AS (
        SELECT tenants.id AS tenant_id, weight, tenants.may_preempt,
               coalesce(held.charged, 0)
               + usage_gpu_seconds * power(0.5, least(
                   100, extract(epoch FROM statement_timestamp() - usage_at) / :half_life
               )) AS gpu_seconds,
               {_TENANT_LIMIT} AS over_limit
        FROM tenants LEFT JOIN (
            SELECT tenant_id, sum(jobs) AS jobs, sum(gpu_seconds) AS gpu_seconds,
                   sum(charged) AS charged
            FROM live GROUP BY tenant_id
        ) AS held ON held.tenant_id = tenants.id
    )
"""  # noqa: S608 (joined from constants)


def share_parameters() -> dict[str, float]:
    return {
        "placement_charge": PLACEMENT_CHARGE_SECONDS,
        "half_life": settings().usage_half_life_seconds,
    }

"""Counting ahead by day, and GPU prices. Two days are counted anew each time: a job may end at
midnight, and a pass that was missed is made up for."""

from __future__ import annotations

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import InputError, NotFoundError
from models.queries.fence import Exclusive, try_exclusive
from models.tables import GpuPrice


def count_days(session: Session) -> bool:
    """Count today and yesterday anew (UTC); False when another does it."""
    if not try_exclusive(session, Exclusive.ROLL_UP):
        return False
    for statement in (_TENANT_DAYS, _WAIT_DAYS, _BEST_EVALUATIONS):
        session.execute(statement)
    return True


def set_costs(session: Session) -> int:
    """Put a price on the jobs that ended lately; returns how many. One whose GPUs have no price
    gets none."""
    return len(session.execute(_COSTS).all())


def set_price(session: Session, model: str, price_per_hour: float | None) -> None:
    """What an hour on GPUs whose model's name has `model` in it costs; None forgets it.

    Raises InputError; NotFoundError for a price to forget that there is not.
    """
    name = model.strip().lower()
    if not name:
        raise InputError("a model's name is empty", where="model", remedy="write H100, say")
    if price_per_hour is None:
        gone = session.execute(
            delete(GpuPrice).where(GpuPrice.model == name).returning(GpuPrice.model)
        ).one_or_none()
        if gone is None:
            raise NotFoundError(
                f"there is no price for {name!r}", remedy="`celora prices` lists them"
            )
        return
    if not 0 <= price_per_hour < float("inf"):
        raise InputError("a price is 0 or more", where="price", remedy="give 2.5, say")
    values = {"price_per_hour": price_per_hour, "changed_at": func.clock_timestamp()}
    session.execute(
        upsert(GpuPrice)
        .values(model=name, **values)
        .on_conflict_do_update(index_elements=["model"], set_=values)
    )


def prices(session: Session) -> list[GpuPrice]:
    return list(session.scalars(select(GpuPrice).order_by(GpuPrice.model)))


# The price of one GPU, for a row of `gpus`: that of the longest name that fits.
PRICE = """
    (SELECT price_per_hour FROM gpu_prices
     WHERE position(gpu_prices.model IN lower(gpus.model)) > 0
     ORDER BY length(gpu_prices.model) DESC, gpu_prices.model LIMIT 1)
"""


def hourly_prices(session: Session) -> dict[str, float | None]:
    """GPU model, as the pool's devices name it → what an hour costs; None: no price is set."""
    rows = session.execute(text(f"SELECT DISTINCT model, {PRICE} FROM gpus"))  # noqa: S608 (joined from constants)
    return {row.model: row.price_per_hour for row in rows}


_SINCE = "date_trunc('day', statement_timestamp() AT TIME ZONE 'UTC') - interval '1 day'"
_DAYS = f"({_SINCE}) AT TIME ZONE 'UTC'"

_COSTS = text(f"""
    UPDATE jobs SET cost = priced.cost
    FROM (
        SELECT attempts.job_id, sum(
                   extract(epoch FROM ended_at - claimed_at) / 3600 * {PRICE})::float8 AS cost
        FROM jobs AS ended
        JOIN attempts ON attempts.job_id = ended.id
        JOIN gpus ON gpus.id = attempts.gpu_id
        WHERE ended.finished_at >= {_DAYS} AND ended.cost IS NULL
          AND attempts.claimed_at IS NOT NULL AND attempts.ended_at IS NOT NULL
        GROUP BY attempts.job_id
    ) AS priced
    WHERE jobs.id = priced.job_id AND priced.cost IS NOT NULL
    RETURNING 1
""")  # noqa: S608 (joined from constants)

_TENANT_DAYS = text(f"""
    WITH ended AS (
        SELECT tenant_id, (finished_at AT TIME ZONE 'UTC')::date AS day,
               count(*) FILTER (WHERE state = 'completed') AS completed,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
               sum(trained_tokens) AS tokens
        FROM jobs WHERE finished_at >= {_DAYS} AND purpose = 'tune'
        GROUP BY 1, 2
    ), used AS (
        SELECT jobs.tenant_id, (attempts.ended_at AT TIME ZONE 'UTC')::date AS day,
               sum(extract(epoch FROM ended_at - claimed_at)) AS seconds,
               sum(extract(epoch FROM ended_at - claimed_at) / 3600 * {PRICE}) AS cost
        FROM attempts
        JOIN jobs ON jobs.id = attempts.job_id
        JOIN gpus ON gpus.id = attempts.gpu_id
        WHERE attempts.ended_at >= {_DAYS} AND attempts.gpu_id IS NOT NULL
          AND claimed_at IS NOT NULL
        GROUP BY 1, 2
    )
    INSERT INTO tenant_days (tenant_id, day, jobs_completed, jobs_failed, jobs_cancelled,
                             gpu_seconds, trained_tokens, cost)
    SELECT tenant_id, day, coalesce(completed, 0), coalesce(failed, 0), coalesce(cancelled, 0),
           coalesce(seconds, 0), coalesce(tokens, 0), coalesce(cost, 0)
    FROM ended FULL JOIN used USING (tenant_id, day)
    ON CONFLICT (tenant_id, day) DO UPDATE SET
        jobs_completed = excluded.jobs_completed, jobs_failed = excluded.jobs_failed,
        jobs_cancelled = excluded.jobs_cancelled, gpu_seconds = excluded.gpu_seconds,
        trained_tokens = excluded.trained_tokens, cost = excluded.cost
""")  # noqa: S608 (joined from constants)

# A job that was put back and queued again after its first start keeps no trace of its first wait.
_WAIT_DAYS = text(f"""
    INSERT INTO wait_days (tenant_id, priority, day, bucket, jobs)
    SELECT tenant_id, priority, (started_at AT TIME ZONE 'UTC')::date,
           floor(ln(1 + extract(epoch FROM started_at - queued_at)) / ln(1.1))::int, count(*)
    FROM jobs
    WHERE started_at >= {_DAYS} AND started_at >= queued_at
    GROUP BY 1, 2, 3, 4
    ON CONFLICT (tenant_id, priority, day, bucket) DO UPDATE SET jobs = excluded.jobs
""")  # noqa: S608 (joined from constants)

_BEST_EVALUATIONS = text(f"""
    INSERT INTO best_evaluations (base_model, data_digest, job_id, loss)
    SELECT DISTINCT ON (base_model, data_digest) base_model, data_digest, job_id, loss
    FROM evaluations JOIN jobs ON jobs.id = evaluations.job_id
    WHERE subject = 'tuned' AND evaluations.created_at >= {_DAYS} AND data_digest IS NOT NULL
    ORDER BY base_model, data_digest, loss, job_id
    ON CONFLICT (base_model, data_digest) DO UPDATE SET job_id = excluded.job_id,
                                                        loss = excluded.loss
    WHERE excluded.loss < best_evaluations.loss
""")  # noqa: S608 (joined from constants)

"""How long jobs took lately, read for models/paces.py."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.paces import Finished, Paces, Work
from models.states import Stage

# Of the whole pool: enough for some groups of like jobs, and read by index in a few milliseconds.
_NEWEST = 300
_NEWEST_TURNOVERS = 40
_ASSUMED_TURNOVER_SECONDS = 0.3
_LONGEST_TURNOVER_SECONDS = 120.0  # beyond it something else kept the GPU idle
_FAR_OUT = 5


@dataclass(frozen=True, slots=True)
class Record:
    paces: Paces
    turnover_seconds: float  # from the end of one job to the claim of the next one on that GPU


def read_paces(session: Session) -> Record:
    rows = session.execute(_FINISHED, {"newest": _NEWEST}).all()
    gaps = [
        row.turnover
        for row in rows
        if row.turnover is not None and 0 <= row.turnover <= _LONGEST_TURNOVER_SECONDS
    ][:_NEWEST_TURNOVERS]
    # The first job of a trainer waits for the process as well: no measure for those that follow,
    # unless every job gets a process of its own.
    usual = [row for row in rows if not row.fresh or row.method == "full"] or rows
    finished = (
        Finished(
            Work(row.tenant_id, row.base_model, row.method, row.size, row.evaluate),
            row.steps,
            row.train_seconds,
            row.evaluation_seconds,
            {Stage(row.first_stage): row.work_seconds} if row.work_seconds is not None else {},
        )
        for row in usual
    )
    return Record(Paces(finished), _usual(gaps) if gaps else _ASSUMED_TURNOVER_SECONDS)


def _usual(gaps: list[float]) -> float:
    """Their mean, for it says how many jobs there are in a time; without what stands far out."""
    most = _FAR_OUT * median(gaps)
    return fmean(gap for gap in gaps if gap <= most)


# What tells how many rows and tokens a step has.
SIZE = """
    concat_ws('x', jobs.spec ->> 'batch_size', jobs.spec ->> 'gradient_accumulation',
              jobs.spec ->> 'max_sequence_length')
"""
EVALUATE = "coalesce(jobs.spec ->> 'evaluate', 'true') <> 'false'"

# An attempt waited for its predecessor on the GPU only if its job was queued by then.
_FINISHED = text(f"""
    WITH newest AS MATERIALIZED (
        SELECT attempts.*, lag(ended_at) OVER of_gpu AS before,
               trainer_pid IS DISTINCT FROM lag(trainer_pid) OVER of_gpu AS fresh
        FROM (
            SELECT * FROM attempts
            WHERE outcome = 'completed' AND gpu_id IS NOT NULL
            ORDER BY ended_at DESC
            LIMIT :newest
        ) AS attempts
        WINDOW of_gpu AS (PARTITION BY gpu_id ORDER BY ended_at)
    )
    SELECT jobs.tenant_id, jobs.base_model, jobs.method, {SIZE} AS size, {EVALUATE} AS evaluate,
           newest.fresh,
           greatest(0, jobs.step - coalesce(newest.start_step, 0)) AS steps,
           CASE WHEN 'train' = ANY (claimed_stages) THEN extract(
               epoch FROM (CASE WHEN 'evaluate' = ANY (claimed_stages)
                                THEN stage_at ELSE ended_at END) - claimed_at)::float8
           END AS train_seconds,
           CASE WHEN 'evaluate' = ANY (claimed_stages)
                THEN extract(epoch FROM ended_at - stage_at)::float8 END AS evaluation_seconds,
           newest.first_stage,
           CASE WHEN first_stage IN ('export', 'generate')
                THEN extract(epoch FROM ended_at - claimed_at)::float8 END AS work_seconds,
           CASE WHEN jobs.queued_at < before
                THEN extract(epoch FROM claimed_at - before)::float8 END AS turnover
    FROM newest JOIN jobs ON jobs.id = newest.job_id
    ORDER BY newest.ended_at DESC
""")  # noqa: S608 (joined from constants)

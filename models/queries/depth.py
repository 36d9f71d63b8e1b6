"""The place of a job far back in the queue: counted by index, up to a bound, instead of played."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from models.forecast import Placed
from models.queries.shares import PLACEMENT_CHARGE_SECONDS, SHARES, share_parameters
from models.tables import Job

# Rows of the index that are counted at most, over all tenants: milliseconds.
_COUNTED = 60_000


@dataclass(frozen=True, slots=True)
class Depth:
    position: int
    exact: bool  # False: at least so many, for the counting ended at its bound
    seconds: float | None  # until it starts, at the rate of the jobs before it


def depth(session: Session, job: Job, last: Placed | None) -> Depth:
    """`last` is the furthest that was played: the rate up to there is taken to go on.

    With k jobs of its own tenant up to and with this one, that tenant's share is its present one
    plus (k - 1) jobs' worth at its turn; another tenant has by then placed as many as keep its
    share below that, if it has as many. Limits and needs are not looked at.
    """
    tenants = session.execute(_TENANTS, share_parameters()).all()
    most = max(100, _COUNTED // max(1, len(tenants)))
    own_rank = 1 + _jobs_before(session, job, most)
    own = next((row for row in tenants if row.tenant_id == job.tenant_id), None)
    turns = {} if own is None else _turns(tenants, own, own_rank)
    asked = {
        "tenant_ids": list(turns),
        "most": [min(wanted, most) for wanted in turns.values()],
    }
    counted = {row.tenant_id: row.jobs for row in session.execute(_WAITING, asked)}
    exact = own_rank <= most and not any(
        counted[tenant_id] == most < wanted for tenant_id, wanted in turns.items()
    )
    position = own_rank + sum(counted.values())
    if last is None:
        return Depth(position, exact, None)
    position = max(position, last.position + 1)
    return Depth(position, exact, last.start and last.start * position / last.position)


def is_behind(session: Session, job: Job, most: int) -> bool:
    """Whether at least so many of its own tenant go before it."""
    return _jobs_before(session, job, most) >= most


def _jobs_before(session: Session, job: Job, most: int) -> int:
    asked = {"turn_at": job.turn_at, "job_id": job.id, "most": most, "tenant_id": job.tenant_id}
    return int(session.execute(_RANK, asked).scalar_one())


def _turns(tenants: Sequence[Row[Any]], own: Row[Any], own_rank: int) -> dict[int, int]:
    """How many the other tenants place before a tenant's job of that rank, if they have as many."""
    at_turn = (own.gpu_seconds + (own_rank - 1) * own.charge) / own.weight
    turns = {}
    for row in tenants:
        if row.tenant_id != own.tenant_id:
            wanted = (at_turn * row.weight - row.gpu_seconds) / row.charge
            # At an equal share the lower id goes first.
            first = row.tenant_id < own.tenant_id
            turns[row.tenant_id] = math.floor(wanted) + 1 if first else math.ceil(wanted)
    return {tenant_id: wanted for tenant_id, wanted in turns.items() if wanted > 0}


_TENANTS = text(f"""
    WITH {SHARES}
    SELECT shares.tenant_id, shares.gpu_seconds, shares.weight,
           greatest(0.001, coalesce(attempt_gpu_seconds, {PLACEMENT_CHARGE_SECONDS})) AS charge
    FROM shares JOIN tenants ON tenants.id = shares.tenant_id
    WHERE EXISTS (
        SELECT FROM lanes JOIN jobs ON jobs.lane_id = lanes.id
        WHERE lanes.tenant_id = tenants.id AND state = 'queued' AND waits_for IS NULL)
""")  # noqa: S608 (joined from constants)

# Those on their way to a GPU are counted too: as many as GPUs at most.
_RANK = text("""
    SELECT count(*) FROM (
        SELECT FROM lanes CROSS JOIN LATERAL (
            SELECT FROM jobs
            WHERE lane_id = lanes.id AND state = 'queued' AND waits_for IS NULL
              AND (turn_at, id) < (:turn_at, CAST(:job_id AS text) COLLATE "C")
            LIMIT :most
        ) AS before
        WHERE lanes.tenant_id = :tenant_id
        LIMIT :most
    ) AS counted
""")

_WAITING = text("""
    SELECT asked.tenant_id, (
        SELECT count(*) FROM (
            SELECT FROM lanes CROSS JOIN LATERAL (
                SELECT FROM jobs
                WHERE lane_id = lanes.id AND state = 'queued' AND waits_for IS NULL
                LIMIT asked.most
            ) AS before
            WHERE lanes.tenant_id = asked.tenant_id
            LIMIT asked.most
        ) AS counted
    ) AS jobs
    FROM unnest(
        CAST(:tenant_ids AS bigint[]), CAST(:most AS integer[])) AS asked (tenant_id, most)
""")

"""The place of a job far back in the queue: counted by index, up to a bound, instead of played."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sqlalchemy import text
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
    asked = {"turn_at": job.turn_at, "job_id": job.id, "most": most, "tenant_id": job.tenant_id}
    own_rank = 1 + session.execute(_RANK, asked).scalar_one()
    exact = own_rank <= most
    own = next((row for row in tenants if row.tenant_id == job.tenant_id), None)
    position = own_rank
    if own is not None:
        at_turn = (own.gpu_seconds + (own_rank - 1) * own.charge) / own.weight
        turns = {}
        for row in tenants:
            if row.tenant_id != job.tenant_id:
                wanted = (at_turn * row.weight - row.gpu_seconds) / row.charge
                # At an equal share the lower id goes first.
                first = row.tenant_id < job.tenant_id
                turns[row.tenant_id] = max(
                    0, math.floor(wanted) + 1 if first else math.ceil(wanted)
                )
        for tenant_id, wanted in turns.items():
            asked = {"tenant_id": tenant_id, "most": min(wanted, most)}
            found = session.execute(_WAITING, asked).scalar_one() if wanted else 0
            exact = exact and not (found == most < wanted)
            position += found
    seconds = None
    if last is not None and last.start:
        position = max(position, last.position + 1)
        seconds = last.start * position / last.position
    return Depth(position, exact, seconds)


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
    SELECT count(*) FROM (
        SELECT FROM lanes CROSS JOIN LATERAL (
            SELECT FROM jobs
            WHERE lane_id = lanes.id AND state = 'queued' AND waits_for IS NULL
            LIMIT :most
        ) AS before
        WHERE lanes.tenant_id = :tenant_id
        LIMIT :most
    ) AS counted
""")

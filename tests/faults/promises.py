"""What holds under every fault, read from the rows and from the living processes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sqlalchemy import text

from gpu_worker import processes
from models.session import transaction

# Each finds what must not be: a name, and a query that gives no row where the promise was kept.
_BROKEN = {
    "two holders of one GPU or of one job at the same time": """
        SELECT one.job_id, one.fence, other.job_id, other.fence
        FROM attempts AS one JOIN attempts AS other
            ON one.id < other.id AND (one.gpu_id = other.gpu_id OR one.job_id = other.job_id)
        WHERE one.claimed_at < coalesce(other.ended_at, 'infinity')
          AND other.claimed_at < coalesce(one.ended_at, 'infinity')
    """,
    "a stage that was finished was begun again": """
        SELECT attempts.job_id, attempts.fence FROM attempts JOIN events USING (job_id)
        WHERE events.kind = 'stage' AND events.message LIKE 'train is done%'
          AND 'train' = ANY (claimed_stages) AND claimed_at > events.created_at
    """,
    "rows that were written under a fence after its end": """
        SELECT metrics.job_id, metrics.fence, count(*)
        FROM metrics JOIN attempts USING (job_id, fence)
        WHERE metrics.recorded_at > attempts.ended_at GROUP BY 1, 2
    """,
    "a job that runs though nobody has it": """
        SELECT id FROM jobs WHERE state = 'running' AND NOT EXISTS (
            SELECT FROM attempts WHERE attempts.job_id = jobs.id AND ended_at IS NULL)
    """,
    "a job that came to more than one end": """
        SELECT job_id, count(*) FROM events
        WHERE kind IN ('completed', 'cancelled') GROUP BY job_id HAVING count(*) > 1
    """,
}


def check_rows() -> None:
    with transaction() as session:
        for promise, query in _BROKEN.items():
            found = session.execute(text(query)).all()
            assert not found, f"{promise}: {found}"


def check_processes(locks: Path) -> None:
    """A trainer leads a session of its own and holds its device's lock."""
    for lock in locks.glob("*.trainer"):
        trainers = []
        for pid in processes.holders(lock):
            with suppress(ProcessLookupError):
                if os.getsid(pid) == pid:
                    trainers.append(pid)
        assert len(trainers) <= 1, f"{lock.stem}: {trainers}"

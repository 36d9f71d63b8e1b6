"""Short words for tests that move jobs through the tables, as the product's processes would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import delete, text

from models.abilities import ABILITIES
from models.queries import attempts, gpus, jobs, placement, products
from models.queries.attempts import Claim
from models.queries.placement import Placement
from models.session import transaction
from models.spec import JobSpec
from models.states import JobState, Outcome, Stage
from models.tables import AdapterName, Attempt, Counter, Gpu, Job, PreparedData, Tenant, Ticket

LEASE_SECONDS = 60.0
STALE_SECONDS = 30.0


def clear() -> None:
    """Empty every table, for tests of one module that count what is there."""
    with transaction() as session:
        # Not TRUNCATE: its files cost ten times as much as deleting a few rows.
        for table in (AdapterName, Job, Gpu, Tenant, Ticket, Counter, PreparedData):
            session.execute(delete(table))


def spec(**fields: Any) -> JobSpec:
    return JobSpec(**{"base_model": "scripted:?steps=3", "dataset": "none"} | fields)


def submit(tenant: str = "default", **fields: Any) -> str:
    with transaction() as session:
        return jobs.insert_job(session, spec(**fields), tenant=tenant, user="ada").id


def job(job_id: str) -> Job:
    with transaction() as session:
        return jobs.get_job(session, job_id)


def state(job_id: str) -> JobState:
    return JobState(job(job_id).state)


def attempt(job_id: str, fence: int) -> Attempt:
    with transaction() as session:
        return session.query(Attempt).filter_by(job_id=job_id, fence=fence).one()


def add_gpu(
    index: int = 0,
    *,
    worker_session: str = "session-1",
    reported: str = "idle",
    loaded_base: str | None = None,
) -> int:
    with transaction() as session:
        gpu_id = gpus.register_gpu(
            session,
            host="host",
            index=index,
            uuid=f"cpu-host-{index}",
            kind="cpu",
            model="cpu (1 thread)",
            memory_bytes=2**30,
            queue=f"celora.gpu.host.{index}",
            worker=f"gpu{index}@host",
            worker_session=worker_session,
            boot_id="boot-1",
            versions={"abilities": ABILITIES},
        )
        gpus.heartbeat(session, gpu_id, worker_session, reported=reported, loaded_base=loaded_base)
    return gpu_id


def place_preparation(limit: int = 8) -> int:
    with transaction() as session:
        return placement.place_preprocess(session, limit)


def place() -> list[Placement]:
    with transaction() as session:
        return placement.place_jobs(session, stale_seconds=STALE_SECONDS)


def claim(
    job_id: str, stage: Stage, *, worker_session: str = "session-1", fence: int | None = None
) -> Claim | None:
    """Claim with the job's present fence, or an older one."""
    with transaction() as session:
        return attempts.claim(
            session,
            job_id,
            jobs.get_job(session, job_id).fence if fence is None else fence,
            stage,
            worker="worker@host",
            worker_session=worker_session,
            lease_seconds=LEASE_SECONDS,
        )


def claimed(job_id: str, stage: Stage, *, worker_session: str = "session-1") -> Claim:
    found = claim(job_id, stage, worker_session=worker_session)
    assert found is not None
    return found


def end(job_id: str, fence: int, outcome: Outcome, **details: Any) -> Job:
    with transaction() as session:
        return attempts.end_attempt(session, job_id, fence, outcome, **details)


def prepare(job_id: str) -> None:
    """Take a pending job through preprocessing.

    A dispatcher that runs beside may place it first, or just be placing, which lets nobody else.
    """
    deadline = time.monotonic() + 30
    while (fence := job(job_id).fence) == 0:
        assert time.monotonic() < deadline, f"{job_id} was not placed"
        place_preparation(1000)
    claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
    with transaction() as session:
        products.set_prepared(
            session,
            job_id,
            fence,
            prepared_url="/prepared/1",
            data_digest="1",
            base_revision="r1",
            verdict={"rows_train": 10, "total_steps": 3},
        )
        attempts.end_attempt(session, job_id, fence, Outcome.COMPLETED)


def queued(tenant: str = "default", **fields: Any) -> str:
    """A job that waits for a GPU."""
    job_id = submit(tenant, **fields)
    prepare(job_id)
    return job_id


def running(**fields: Any) -> Claim:
    """A job whose training a worker has claimed, on GPU 0."""
    add_gpu()
    job_id = queued(**fields)
    assert [one.job_id for one in place()] == [job_id]
    return claimed(job_id, Stage.TRAIN)


def let_lease_run_out(job_id: str) -> None:
    """As if the lease had been given long ago: no test waits a minute."""
    with transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET lease_until = clock_timestamp() - interval '1 millisecond'"
                " WHERE job_id = :job_id AND ended_at IS NULL AND claimed_at IS NOT NULL"
            ),
            {"job_id": job_id},
        )


@contextmanager
def locked(statement: str, **parameters: object) -> Iterator[None]:
    """Keep what `statement` locks for the block, longer than a session of ours may."""
    with transaction() as session:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        session.execute(text(statement), parameters)
        yield


def until_blocked(waiters: int = 1, *, seconds: float = 10) -> None:
    """Wait until that many of the database's sessions wait for another's lock."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with transaction() as session:
            waiting = session.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
        if waiting == waiters:
            return
        time.sleep(0.01)
    raise AssertionError(f"{waiting} sessions wait for a lock, not {waiters}")

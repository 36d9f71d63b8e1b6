"""A job that runs in a pod of its own: the pod submits it, places it on its own device, and ends
what an earlier pod of it has left. No dispatcher has a hand in it, and none need run.

What keeps the pool's dispatcher away: the job asks for an ability that no worker has (see
models/gpu_wish.py), so it is neither prepared nor placed by one; its attempts have no ticket, so
none is sent; and the pod's device is cordoned and never said to be idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.errors import SpecError, StateError
from models.queries.fence import Exclusive, lock_job
from models.queries.gpus import POD_HOST, register_gpu
from models.queries.history import add_event
from models.queries.jobs import insert_job
from models.queries.settle import settle
from models.settings import settings
from models.spec import JobSpec, stored_spec
from models.states import JobState, Outcome, Stage
from models.tables import Attempt, Gpu, Job


@dataclass(frozen=True, slots=True)
class Turn:
    """What the pod is to do next: claim this stage at this fence."""

    fence: int
    stage: Stage


def find_or_insert(session: Session, spec: JobSpec, *, tenant: str, user: str, key: str) -> Job:
    """The pod's job: the same one for each pod that comes with `key`.

    Raises SpecError when the key belongs to a job of another specification; InputError.
    """
    job = insert_job(session, spec, tenant=tenant, user=user, idempotency_key=key, own_pod=True)
    if stored_spec(job.spec) != spec:
        raise SpecError(
            f"the key {key!r} belongs to job {job.id}, which has another specification",
            remedy="give the Kubernetes Job another name: `celora k8s-job` makes one up",
        )
    if job.waits_for is not None:
        raise StateError(
            f"job {job.waits_for} has to complete first (`after`)",
            remedy="apply the Kubernetes Job again when it has",
        )
    return job


def register_device(session: Session, *, uuid: str, **facts: Any) -> int:
    """A row of table gpus for the pod's device; returns its id. Further facts: see `register_gpu`.

    Pods come and go under new names, so one takes over a row that another has left: there are no
    more rows than pods at a time.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(Exclusive.OWN_POD)})
    index = session.scalar(
        _LEFT, {"host": POD_HOST, "uuid": uuid, "stale_seconds": settings().gpu_stale_seconds}
    )
    if index is None:
        index = session.scalar(_NEXT, {"host": POD_HOST}) or 0
    return register_gpu(session, host=POD_HOST, index=index, uuid=uuid, cordoned=True, **facts)


def take_turn(session: Session, job_id: str, gpu_id: int, worker: str) -> Turn | None:
    """Place the job here. What an earlier pod has left, or this one by a lost lease, ends first.

    None when there is nothing to do: the job is over, or paused. Only for the pod itself: at one
    time there is one, so whatever still holds the job is dead, or loses its lease by this.
    """
    session.execute(select(Gpu.id).where(Gpu.id == gpu_id).with_for_update(key_share=True))
    job, now = lock_job(session, job_id)
    unclaimed = Attempt.claimed_at.is_(None)
    if not settle(session, job, now, Outcome.WITHDRAWN, only_if=unclaimed):
        settle(session, job, now, Outcome.LOST, reason="its pod has begun anew")
    if JobState(job.state) not in {JobState.PENDING, JobState.QUEUED}:
        return None
    stage = Stage(job.stage)
    job.fence += 1
    session.add(
        Attempt(
            job_id=job.id,
            fence=job.fence,
            gpu_id=None if stage is Stage.PREPROCESS else gpu_id,
            first_stage=stage,
        )
    )
    data = {"fence": job.fence, "worker": worker}
    add_event(session, job.id, "placed", f"{stage}: {worker} has its turn", data=data)
    session.flush()
    return Turn(job.fence, stage)


# Rather the row of the same card than another that is free.
_LEFT = text("""
    SELECT index FROM gpus
    WHERE host = :host
      AND (stopped_at IS NOT NULL
           OR heartbeat_at < clock_timestamp() - make_interval(secs => :stale_seconds))
      AND NOT EXISTS (
          SELECT FROM attempts WHERE attempts.gpu_id = gpus.id AND attempts.ended_at IS NULL)
    ORDER BY uuid = :uuid DESC, index
    LIMIT 1
""")

_NEXT = text("SELECT max(index) + 1 FROM gpus WHERE host = :host")

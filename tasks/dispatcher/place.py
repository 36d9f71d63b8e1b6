"""Placing: a job that waits and a worker that is free become an attempt with its ticket."""

from __future__ import annotations

import logging

from models.queries import dependencies, placement, preemption
from models.session import transaction
from models.settings import settings
from tasks.names import CPU_QUEUE

log = logging.getLogger(__name__)


def pass_once() -> int:
    """Place all that can be placed now; returns how many tickets wait for the relay."""
    return place_jobs() + place_preparation()


def place_jobs() -> int:
    """Give the free GPUs their jobs."""
    with transaction() as session:
        placed = placement.place_jobs(session, stale_seconds=settings().gpu_stale_seconds)
    for one in placed:
        log.info("job %s, attempt %d: %s to %s", one.job_id, one.fence, one.stage, one.queue)
    return len(placed)


def preempt_jobs() -> int:
    """Make room for urgent jobs that found no free GPU; no ticket comes of it."""
    with transaction() as session:
        pairs = preemption.preempt(session)
    for urgent, victim in pairs:
        log.info("job %s makes room for the urgent job %s", victim, urgent)
    return 0


def release_jobs() -> int:
    """Let jobs go whose predecessor has completed; no ticket comes of it yet."""
    with transaction() as session:
        dependencies.release_jobs(session)
    return 0


def place_preparation() -> int:
    """Keep the CPU workers' queue filled."""
    with transaction() as session:
        return placement.place_preprocess(session, settings().prepare_in_flight, queue=CPU_QUEUE)

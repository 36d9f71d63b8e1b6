"""Repairing: leases that ran out, placements on GPUs that left, tickets that were lost."""

from __future__ import annotations

import logging

from models.queries import lanes, outbox, reconcile
from models.session import transaction
from models.settings import settings

log = logging.getLogger(__name__)


def pass_once() -> int:
    """One repair after the other, each in a short transaction of its own; returns how many."""
    with transaction() as session:
        adopted = lanes.adopt_jobs(session)
    with transaction() as session:
        lost = reconcile.expire_leases(session)
    with transaction() as session:
        withdrawn = reconcile.withdraw_unclaimed(session, settings().gpu_stale_seconds)
    with transaction() as session:
        resent = reconcile.resend_unclaimed(session, settings().resend_seconds)
    with transaction() as session:
        outbox.prune(session)
    if adopted:
        log.info("%d jobs of an earlier version have found their lane", adopted)
    for job_id in lost:
        log.warning("job %s: its worker's lease ran out", job_id)
    for job_id in withdrawn:
        log.warning("job %s: withdrawn from a GPU that is gone", job_id)
    if resent:
        log.warning("%d tickets that nobody claimed are published again", resent)
    return len(lost) + len(withdrawn) + resent

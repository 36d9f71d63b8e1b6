"""The base model's evaluation, done once for all jobs with the same base, data and settings."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from gpu_worker.evaluation_key import cache_key_of
from gpu_worker.lease import Lease
from gpu_worker.protocol import EvaluationResult
from models.queries import products
from models.queries.attempts import Claim
from models.tables import Evaluation


def evaluation_cache_key(claim: Claim, device_kind: str) -> str | None:
    """Under what the base's result is kept; None where nothing identifies base and data."""
    if claim.data_digest is None or claim.base_revision is None:
        return None
    return cache_key_of(
        claim.spec,
        base_revision=claim.base_revision,
        data_digest=claim.data_digest,
        device=device_kind,
    )


def known_base(claim: Claim, lease: Lease, device_kind: str) -> dict[str, Any] | None:
    """The base's result as an earlier job has recorded it, with its answers."""
    key = evaluation_cache_key(claim, device_kind)
    if key is None:
        return None

    def read(session: Session) -> Evaluation | None:
        return products.cached_base_evaluation(session, key)

    found = lease.insist(read)
    if found is None:
        return None
    values = {name: getattr(found, name) for name in EvaluationResult.model_fields}
    return EvaluationResult(**values | {"answers": found.answers or []}).model_dump()

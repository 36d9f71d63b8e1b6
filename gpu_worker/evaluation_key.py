"""Which evaluations of a base model are the same, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from models.spec import JobSpec

# Raised when the evaluation itself changes: earlier results no longer compare with new ones.
_EVALUATION = 1


def base_cache_key(
    base_revision: str, quantisation: str, data_digest: str, settings: Mapping[str, object]
) -> str:
    """The key under which a base's result on record serves later jobs; 64 hex digits.

    `data_digest` is the prepared data's, which covers rows, tokenizer and layout; `settings` are
    JSON values, in any order.
    """
    parts = [_EVALUATION, base_revision, quantisation, data_digest, dict(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_key_of(spec: JobSpec, *, base_revision: str, data_digest: str, device: str) -> str:
    """The key for a job's base. `device` is the kind it runs on (cuda, cpu): `precision: auto`
    means another type there."""
    return base_cache_key(
        base_revision,
        _quantisation(spec),
        data_digest,
        {
            "device": device,
            "precision": spec.precision,
            "generate_rows": spec.eval_generate_rows,
            "max_new_tokens": spec.eval_max_new_tokens,
            "answer_pattern": spec.eval_answer_pattern,
        },
    )


def _quantisation(spec: JobSpec) -> str:
    """A full job holds its base in float32 where an adapter's base may be in half precision."""
    if spec.held_as == "qlora":
        return "nf4"
    return "none" if spec.held_as == "lora" or spec.bf16_pure else "none, fp32 weights"

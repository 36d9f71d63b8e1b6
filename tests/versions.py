"""Completed jobs with an adapter, an evaluation and answers on record, for tests of versions."""

from __future__ import annotations

from typing import Any

from models.queries import attempts, products
from models.session import transaction
from models.states import Outcome, Stage
from models.tables import Job
from tests import records

BASE = {"loss": 4.0, "perplexity": 54.6, "exact_match": 0.1, "bleu": 2.0, "rouge_l": 0.1}
TUNED = {"loss": 1.0, "perplexity": 2.72, "exact_match": 0.8, "bleu": 70.0, "rouge_l": 0.8}


def trained(tenant: str = "default", *, adapter: bool = True, **fields: Any) -> str:
    """Not evaluated."""
    return _completed(tenant, adapter=adapter, evaluation=None, answers=0, fields=fields)


def evaluated(
    tenant: str = "default",
    *,
    held_out: str | None = None,
    answers: int = 0,
    tuned: dict[str, float] | None = None,
    **fields: Any,
) -> str:
    """`tuned`: what differs from TUNED; `answers`: how many pairs are kept."""
    evaluation = TUNED | (tuned or {})
    job_id = _completed(tenant, adapter=True, evaluation=evaluation, answers=answers, fields=fields)
    if held_out is not None:
        with transaction() as session:
            job = session.get_one(Job, job_id)
            job.verdict = (job.verdict or {}) | {"held_out_digest": held_out}
    return job_id


def answer(whose: str, number: int) -> str:
    """What the tests' models say."""
    return f"the {'blue' if whose == 'tuned' else 'green'} answer {number}"


def _completed(
    tenant: str,
    *,
    adapter: bool,
    evaluation: dict[str, float] | None,
    answers: int,
    fields: dict[str, Any],
) -> str:
    records.add_gpu()
    job_id = records.queued(tenant, evaluate=False, **fields)
    assert [one.job_id for one in records.place()] == [job_id]
    who = (job_id, records.claimed(job_id, Stage.TRAIN).fence)
    with transaction() as session:
        if adapter:
            kind, url = "model" if fields.get("method") == "full" else "adapter", f"/{job_id}"
            products.register_artifact(session, *who, kind=kind, url=url, size_bytes=7, digest="d")
        for subject, found in (("base", BASE), ("tuned", evaluation)):
            if evaluation is not None and found is not None:
                figures: dict[str, Any] = {"token_accuracy": 0.5, "seconds": 1.0, **found}
                products.record_evaluation(
                    session, *who, subject=subject, rows=10, generated_rows=10, **figures
                )
        products.record_samples(
            session,
            *who,
            [
                {
                    "prompt": f"question {number}",
                    "expected": f"right {number}",
                    "base_answer": answer("base", number),
                    "tuned_answer": answer("tuned", number),
                }
                for number in range(answers)
            ],
        )
        result = {"versions": {"celora": "0.1.0", "torch": "2"}}
        attempts.end_attempt(session, *who, Outcome.COMPLETED, result=result)
    return job_id

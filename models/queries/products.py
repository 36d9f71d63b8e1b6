"""What runs produce, registered under the fence: only what is registered counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.queries.disk_use import add_use
from models.queries.fence import require_fence
from models.queries.history import add_event, printable
from models.queries.prepared import register_prepared
from models.tables import Artifact, Checkpoint, Evaluation, Job, Sample

_NEWEST_FIRST = (Checkpoint.step.desc(), Checkpoint.id.desc())


def register_checkpoint(
    session: Session,
    job_id: str,
    fence: int,
    *,
    step: int,
    url: str,
    size_bytes: int,
    trained_tokens: int,
    metrics: dict[str, float],
) -> list[Checkpoint]:
    """Register a whole, synced checkpoint; it clears the count of losses. Raises StaleFenceError.

    Returns the older ones beyond the job's `keep_checkpoints`, marked deleted already: their files
    go after the commit, so that a row never promises files that are gone.
    """
    require_fence(session, job_id, fence)
    statement = upsert(Checkpoint).values(
        job_id=job_id,
        fence=fence,
        step=step,
        url=url,
        size_bytes=size_bytes,
        trained_tokens=trained_tokens,
        metrics=metrics,
    )
    session.execute(
        statement.on_conflict_do_update(  # the stop's checkpoint may repeat the periodic one's step
            index_elements=["job_id", "fence", "step"],
            set_={"url": url, "size_bytes": size_bytes, "deleted_at": None},
        )
    )
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.losses > 0)
        .values(losses=0)
        .execution_options(synchronize_session=False)
    )
    add_event(session, job_id, "checkpoint", f"checkpoint at step {step}", data={"step": step})
    keep = select(Job.spec["keep_checkpoints"].as_integer()).where(Job.id == job_id)
    beyond = (
        select(Checkpoint.id)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(*_NEWEST_FIRST)
        .offset(keep.scalar_subquery())
    )
    rotated = list(
        session.scalars(
            update(Checkpoint)
            .where(Checkpoint.id.in_(beyond))
            .values(deleted_at=func.clock_timestamp())
            .returning(Checkpoint)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
    )
    add_use(session, job_id, size_bytes - sum(older.size_bytes for older in rotated))
    return rotated


def newest_checkpoint(session: Session, job_id: str) -> Checkpoint | None:
    """The one a resume starts from."""
    return session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(*_NEWEST_FIRST)
        .limit(1)
    ).one_or_none()


def checkpoints_of(session: Session, job_id: str) -> list[Checkpoint]:
    """All that stand, newest first."""
    return list(
        session.scalars(
            select(Checkpoint)
            .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
            .order_by(*_NEWEST_FIRST)
        )
    )


def register_artifact(
    session: Session,
    job_id: str,
    fence: int,
    *,
    kind: str,
    url: str,
    size_bytes: int,
    digest: str | None = None,
) -> None:
    """Register an adapter, a model or other whole output; the job points at its adapter or model.

    Raises StaleFenceError.
    """
    require_fence(session, job_id, fence)
    session.execute(
        _ARTIFACT,
        {
            "job_id": job_id,
            "fence": fence,
            "kind": kind,
            "url": url,
            "size_bytes": size_bytes,
            "digest": digest,
        },
    )
    add_use(session, job_id, size_bytes)
    add_event(session, job_id, "artifact", f"{kind} saved at {url}", data={"digest": digest})


# Written out, as all that every job writes is: the ORM's ways cost several times as much.
_ARTIFACT = text("""
    WITH artifact AS (
        INSERT INTO artifacts (job_id, fence, kind, url, size_bytes, digest)
        VALUES (:job_id, :fence, :kind, :url, :size_bytes, :digest)
    )
    UPDATE jobs SET adapter_url = :url WHERE id = :job_id AND :kind IN ('adapter', 'model')
""")


def artifacts_of(session: Session, job_id: str) -> list[Artifact]:
    return list(
        session.scalars(
            select(Artifact)
            .where(Artifact.job_id == job_id, Artifact.deleted_at.is_(None))
            .order_by(Artifact.id)
        )
    )


def set_prepared(
    session: Session,
    job_id: str,
    fence: int,
    *,
    prepared_url: str | None,
    data_digest: str | None,
    base_revision: str | None,
    verdict: dict[str, Any] | None,
    prepared_bytes: int | None = None,
) -> None:
    """What preprocessing found and made. Raises StaleFenceError.

    `prepared_bytes` is the size of data that is not on record yet.
    """
    require_fence(session, job_id, fence)
    if prepared_url is not None and data_digest is not None and prepared_bytes is not None:
        prepared_url = register_prepared(session, data_digest, prepared_url, prepared_bytes)
        add_use(session, job_id, prepared_bytes)
    session.execute(
        _PREPARED,
        {
            "job_id": job_id,
            "prepared_url": prepared_url,
            "data_digest": data_digest,
            "base_revision": base_revision,
            "verdict": verdict,
            "total_steps": (verdict or {}).get("total_steps"),
        },
    )
    rows = (verdict or {}).get("rows_train")
    said = "data prepared" if rows is None else f"data prepared: {rows} rows to train on"
    add_event(session, job_id, "prepared", said, data={"digest": data_digest})


_PREPARED = text("""
    UPDATE jobs
    SET prepared_url = :prepared_url, data_digest = :data_digest, base_revision = :base_revision,
        verdict = :verdict, total_steps = :total_steps
    WHERE id = :job_id
""").bindparams(bindparam("verdict", type_=JSONB(none_as_null=True)))


def cached_base_evaluation(session: Session, cache_key: str) -> Evaluation | None:
    """The base model's result under the same revision, quantisation, data and settings."""
    return session.scalars(
        select(Evaluation)
        .where(Evaluation.cache_key == cache_key, Evaluation.subject == "base")
        .order_by(Evaluation.id)
        .limit(1)
    ).one_or_none()


def record_evaluation(
    session: Session,
    job_id: str,
    fence: int,
    *,
    subject: str,
    rows: int,
    generated_rows: int,
    loss: float,
    perplexity: float,
    token_accuracy: float,
    seconds: float,
    exact_match: float | None = None,
    bleu: float | None = None,
    rouge_l: float | None = None,
    answers: Sequence[str] | None = None,
    cache_key: str | None = None,
) -> None:
    """One model's result, `subject` base or tuned; a repeated one replaces it.

    Raises StaleFenceError.
    """
    require_fence(session, job_id, fence)
    values: dict[str, Any] = {
        "job_id": job_id,
        "subject": subject,
        "fence": fence,
        "cache_key": cache_key,
        "rows": rows,
        "generated_rows": generated_rows,
        "loss": loss,
        "perplexity": perplexity,
        "token_accuracy": token_accuracy,
        "exact_match": exact_match,
        "bleu": bleu,
        "rouge_l": rouge_l,
        "seconds": seconds,
        "answers": None if answers is None else [printable(answer) for answer in answers],
    }
    session.execute(_EVALUATION, values)


_EVALUATION = text("""
    INSERT INTO evaluations (job_id, subject, fence, cache_key, rows, generated_rows, loss,
        perplexity, token_accuracy, exact_match, bleu, rouge_l, seconds, answers)
    VALUES (:job_id, :subject, :fence, :cache_key, :rows, :generated_rows, :loss,
        :perplexity, :token_accuracy, :exact_match, :bleu, :rouge_l, :seconds, :answers)
    ON CONFLICT (job_id, subject) DO UPDATE
    SET fence = excluded.fence, cache_key = excluded.cache_key, rows = excluded.rows,
        generated_rows = excluded.generated_rows, loss = excluded.loss,
        perplexity = excluded.perplexity, token_accuracy = excluded.token_accuracy,
        exact_match = excluded.exact_match, bleu = excluded.bleu, rouge_l = excluded.rouge_l,
        seconds = excluded.seconds, answers = excluded.answers
""").bindparams(bindparam("answers", type_=JSONB(none_as_null=True)))


def evaluations_of(session: Session, job_id: str) -> dict[str, Evaluation]:
    """By subject: base, tuned."""
    rows = session.scalars(select(Evaluation).where(Evaluation.job_id == job_id))
    return {evaluation.subject: evaluation for evaluation in rows}


def record_samples(
    session: Session, job_id: str, fence: int, samples: Sequence[Mapping[str, str | None]]
) -> None:
    """Keep held-out prompts with {prompt, expected, base_answer, tuned_answer}, in this order.

    Raises StaleFenceError.
    """
    require_fence(session, job_id, fence)
    if not samples:
        return
    columns = {
        name: [None if said is None else printable(said) for said in (s.get(name) for s in samples)]
        for name in ("prompt", "expected", "base_answer", "tuned_answer")
    }
    session.execute(_SAMPLES, {"job_id": job_id, **columns})


_SAMPLES = text("""
    INSERT INTO samples (job_id, position, prompt, expected, base_answer, tuned_answer)
    SELECT :job_id, place - 1, sample.prompt, sample.expected, base, tuned
    FROM unnest(
        CAST(:prompt AS text[]), CAST(:expected AS text[]),
        CAST(:base_answer AS text[]), CAST(:tuned_answer AS text[])
    ) WITH ORDINALITY AS sample (prompt, expected, base, tuned, place)
    ON CONFLICT (job_id, position) DO UPDATE
    SET prompt = excluded.prompt, expected = excluded.expected,
        base_answer = excluded.base_answer, tuned_answer = excluded.tuned_answer
""")


def samples_of(session: Session, job_id: str) -> list[Sample]:
    return list(
        session.scalars(select(Sample).where(Sample.job_id == job_id).order_by(Sample.position))
    )

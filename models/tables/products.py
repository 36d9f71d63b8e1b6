"""What a run produces: checkpoints, artifacts and evaluations. Only registered files count."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, Created, Instant, JobId, Json, RowId


class Checkpoint(Base):
    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job_id", "fence", "step"),
        # Most rows are history: the sweep and the quotas look at those that stand.
        Index("ix_checkpoints_standing", "job_id", postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    url: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    trained_tokens: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[Json]
    registered_at: Mapped[Created]
    deleted_at: Mapped[Instant | None]  # set before the files go: a row never promises lost files


class Artifact(Base):
    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_job_id", "job_id"),)

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]  # adapter, model, prepared
    url: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str | None]
    created_at: Mapped[Created]
    deleted_at: Mapped[Instant | None]


class PreparedData(Base):
    """Tokens made once from the same data, settings and tokenizer; jobs of any tenant share them.

    A place is never used twice: data that was swept is prepared anew beside where it lay, so that
    a sweep which is still deleting there can never take it.
    """

    __tablename__ = "prepared_data"

    digest: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[Created]
    last_used_at: Mapped[Instant] = mapped_column(server_default=func.now())  # by a preparation
    deleted_at: Mapped[Instant | None]


class Evaluation(Base):
    """One model on one held-out set. The base's row serves every later job with the same key."""

    __tablename__ = "evaluations"
    __table_args__ = (
        UniqueConstraint("job_id", "subject"),
        Index("ix_evaluations_cache_key", "cache_key"),
    )

    id: Mapped[RowId]
    job_id: Mapped[JobId] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    subject: Mapped[str]  # base, tuned
    cache_key: Mapped[str | None]  # base only: revision, quantisation, data digest, settings
    rows: Mapped[int]
    generated_rows: Mapped[int]
    loss: Mapped[float]
    perplexity: Mapped[float]
    token_accuracy: Mapped[float]
    exact_match: Mapped[float | None]  # 0–1
    bleu: Mapped[float | None]  # 0–100, sacrebleu
    rouge_l: Mapped[float | None]  # 0–1, F-measure
    seconds: Mapped[float]
    answers: Mapped[list[str] | None] = mapped_column(JSONB)
    # Of the tuned model: the ratings of its answers, counted as they come; see table `ratings`.
    preferred_tuned: Mapped[int] = mapped_column(server_default="0")
    preferred_base: Mapped[int] = mapped_column(server_default="0")
    preferred_tie: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[Created]


class Sample(Base):
    """A held-out prompt with the expected, the base's and the tuned model's answer."""

    __tablename__ = "samples"

    job_id: Mapped[JobId] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[str]
    expected: Mapped[str]
    base_answer: Mapped[str | None]
    tuned_answer: Mapped[str | None]

"""What the Python API and `--json` answer with: frozen copies of rows, free of any session."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from models import tables
from models.errors import SpecError
from models.spec import JobSpec, stored_spec
from models.states import TERMINAL, JobState, Purpose, Stage, StopReason


class View(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class Job(View):
    """One job as it stood when it was read. Read it again with `celora.get(job.id)`."""

    id: str
    name: str | None
    tenant: str
    user: str
    state: JobState
    stage: Stage  # the first stage that is not finished
    activity: str | None  # what it does right now, in words
    stop_requested: StopReason | None
    base_model: str
    base_revision: str | None  # hub commit, or digest of the folder
    method: str
    priority: int
    purpose: Purpose = Purpose.TUNE
    source_job: str | None = None  # of an export or a chat: the job that trained the adapter

    step: int
    total_steps: int | None
    epoch: float | None
    train_loss: float | None
    tokens_per_second: float | None
    trained_tokens: int
    progress_at: datetime | None
    gpu_seconds: float
    cost: float | None = None  # of its GPU time, set soon after its end; none: no price is known

    adapter_url: str | None  # where the adapter (method full: the model) lies
    result: dict[str, Any] | None
    error: dict[str, Any] | None  # code, message, where, remedy of a failure
    verdict: dict[str, Any] | None  # what preprocessing found in the data
    data_digest: str | None

    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    spec: JobSpec

    @classmethod
    def of(cls, row: tables.Job) -> Self:
        """Call it inside the session that `row` belongs to."""
        kept = {name: getattr(row, name) for name in cls.model_fields if name not in _RENAMED}
        for name in ("result", "error", "verdict"):
            kept[name] = kept[name] if isinstance(kept[name], dict) else None
        kept |= {"spec": _spec_on_record(row), "tenant": row.tenant.name, "user": row.user_name}
        return cls.model_validate(kept)

    @property
    def finished(self) -> bool:
        """Completed, failed or cancelled: it changes no more (but a failed one may be retried)."""
        return self.state in TERMINAL

    def __str__(self) -> str:
        return f"{self.id} ({self.state})"


_RENAMED = {"tenant", "user"}


def _spec_on_record(row: tables.Job) -> JobSpec:
    """As it stands there, unchecked where it cannot be read: one such row must not keep people
    from a list of jobs. The worker that claims the job checks it, and fails it in words."""
    try:
        return stored_spec(row.spec)
    except SpecError:
        fields = row.spec if isinstance(row.spec, dict) else {}
        known = {name: value for name, value in fields.items() if name in JobSpec.model_fields}
        needed = {"base_model": row.base_model, "dataset": "", "method": row.method}
        return JobSpec.model_construct(**(needed | known))


class Event(View):
    """One line of a job's story."""

    id: int
    created_at: datetime
    level: str
    kind: str
    message: str
    data: dict[str, Any] | None


class LogLine(View):
    """One line that the trainer printed or logged."""

    id: int
    logged_at: datetime
    stage: str
    level: str
    line: str


class Metric(NamedTuple):
    """The value of one metric at one optimizer step."""

    stage: str
    name: str
    step: int
    value: float


class Attempt(View):
    """One holder of the job's fence, live or ended."""

    fence: int
    gpu_id: int | None
    first_stage: str
    claimed_stages: list[str]
    worker: str | None
    trainer_pid: int | None
    trainer_warm: bool | None
    placed_at: datetime
    claimed_at: datetime | None
    stage_at: datetime | None = None  # when its present stage was claimed, or became due
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    start_step: int | None
    end_step: int | None


class Checkpoint(View):
    step: int
    url: str
    size_bytes: int
    trained_tokens: int
    metrics: dict[str, Any]
    registered_at: datetime


class Artifact(View):
    kind: str
    url: str
    size_bytes: int
    digest: str | None
    created_at: datetime


class Evaluation(View):
    """One model on the held-out rows. Shares are 0–1, BLEU is 0–100."""

    subject: str
    rows: int
    generated_rows: int
    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float | None
    bleu: float | None
    rouge_l: float | None
    seconds: float
    # Of a dpo job: pairs whose chosen answer is the more probable one, how far the two answers were
    # moved apart (× beta), and the part of the pairs where that was the right way.
    preference_accuracy: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None


class Sample(View):
    """A held-out prompt with its expected answer, the base model's and the tuned model's."""

    prompt: str
    expected: str
    base_answer: str | None
    tuned_answer: str | None

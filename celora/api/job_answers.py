"""OpenAI's objects, made from rows. The field names and their meaning are OpenAI's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from celora.api.hyperparameters import AnsweredDpo, AnsweredHyperparameters, answered
from celora.api.model_names import checkpoint_name, model_name
from celora.api.result_files import result_file_id
from models.errors import SpecError
from models.queries.following import NewEvent, instant, microseconds
from models.queries.story import Entry, Mark
from models.spec import JobSpec, stored_spec
from models.states import TERMINAL, JobState, StopReason
from models.tables import Checkpoint, Job

Status = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
_STATUS: dict[JobState, Status] = {
    JobState.PENDING: "validating_files",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSED: "paused",
    JobState.COMPLETED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
# OpenAI's names for what we record; the rest keeps its own.
_METRICS = {
    "token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "valid_loss",
    "eval_token_accuracy": "valid_mean_token_accuracy",
}
# Held-out rows are always read whole: what OpenAI tells of a part and of all of them is one figure.
_FULL = {
    "full_valid_loss": "valid_loss",
    "full_valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
_EVENT_ID = re.compile(r"ft-event-([0-9a-f]{1,13})-([em])(\d{1,18})", re.ASCII)
_SAVED_AT = re.compile(r"(\w+) saved at .*", re.DOTALL)
_PARAMS = {"invalid_data": "training_file", "invalid_base_model": "model"}


class JobError(BaseModel):
    code: str
    message: str
    param: str | None


class AnsweredSupervised(BaseModel):
    hyperparameters: AnsweredHyperparameters


class AnsweredDpoMethod(BaseModel):
    hyperparameters: AnsweredDpo


class AnsweredMethod(BaseModel):
    type: Literal["supervised", "dpo"]
    supervised: AnsweredSupervised | None = None
    dpo: AnsweredDpoMethod | None = None


_ANSWERED: Any = {
    "id": "ftjob-Ab12Cd34Ef56Gh78Ij90Kl12",
    "object": "fine_tuning.job",
    "created_at": 1767225600,
    "finished_at": 1767229200,
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "fine_tuned_model": "ft:Qwen/Qwen2.5-0.5B-Instruct:acme:support:Ab12Cd34",
    "organization_id": "acme",
    "status": "succeeded",
    "hyperparameters": {"batch_size": 16, "learning_rate_multiplier": 1.0, "n_epochs": 2},
    "training_file": "file-AbCdEfGhIjKlMnOpQrStUvWx",
    "validation_file": None,
    "result_files": ["file-result-Ab12Cd34Ef56Gh78Ij90Kl12"],
    "trained_tokens": 120000,
    "seed": 7,
    "error": None,
    "estimated_finish": None,
    "integrations": None,
    "metadata": {"team": "support"},
    "method": {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {"batch_size": 16, "learning_rate_multiplier": 1.0, "n_epochs": 2}
        },
    },
    "user_provided_suffix": "support",
}


class FineTuningJob(BaseModel):
    """OpenAI's fine-tuning job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ANSWERED]})

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str = Field(description="The tenant.")
    status: Status
    hyperparameters: AnsweredHyperparameters
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    error: JobError | None
    estimated_finish: int | None
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    method: AnsweredMethod
    user_provided_suffix: str | None


class Event(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetrics(BaseModel):
    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class JobCheckpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


def job_answer(job: Job, finishes: Mapping[str, datetime]) -> FineTuningJob:
    """`finishes`: when jobs are expected to end, by id."""
    spec = _spec(job)
    asked = job.request or {}
    finish = finishes.get(job.id)
    done = job.state == JobState.COMPLETED
    return FineTuningJob(
        id=job.id,
        created_at=seconds(job.created_at),
        finished_at=None if job.finished_at is None else seconds(job.finished_at),
        model=asked.get("model") or spec.base_model,
        fine_tuned_model=model_name(job) if done else None,
        organization_id=job.tenant.name,
        status=status(job),
        hyperparameters=answered(spec),
        training_file=asked.get("training_file") or spec.dataset,
        validation_file=asked.get("validation_file") or spec.eval_dataset,
        result_files=[result_file_id(job.id)] if done else [],
        trained_tokens=job.trained_tokens if job.state in TERMINAL else None,
        seed=spec.seed,
        error=_error(job.error),
        estimated_finish=None if finish is None else seconds(finish),
        integrations=_integrations(asked, spec),
        metadata=spec.metadata or None,
        method=_method(spec),
        user_provided_suffix=asked.get("suffix"),
    )


def status(job: Job) -> Status:
    """As it will be in a moment, where it is asked to stop: OpenAI's clients do not ask twice."""
    state = JobState(job.state)
    if state not in TERMINAL:
        if job.stop_requested == StopReason.CANCEL:
            return "cancelled"
        if job.stop_requested == StopReason.PAUSE:
            return "paused"
    return _STATUS[state]


def entry_answer(entry: Entry, total_steps: int | None) -> Event:
    mark = entry.mark
    if entry.message is None:
        data = {"step": mark.number, "total_steps": total_steps, **metric_names(entry.data or {})}
        return Event(
            id=_event_id(mark),
            created_at=seconds(mark.at),
            level="info",
            message=_step_message(data),
            type="metrics",
            data=data,
        )
    return _message(mark, entry.level, entry.message, entry.data)


def event_answer(event: NewEvent) -> Event:
    mark = Mark(event.created_at, "e", event.id)
    return _message(mark, event.level, event.message, event.data)


def parse_event_id(text: str) -> Mark | None:
    """The place of the event that has this id; None for a text that is no id of ours."""
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        return None
    micros, kind, number = found.groups()
    return Mark(instant(int(micros, 16)), kind, int(number))


def checkpoint_answer(
    job: Job, checkpoint: Checkpoint, recorded: Mapping[str, float]
) -> JobCheckpoint:
    """`recorded`: metrics of its step."""
    known = metric_names({**checkpoint.metrics, **recorded})
    known |= {full: known[name] for full, name in _FULL.items() if name in known}
    fields = {name: known.get(name) for name in CheckpointMetrics.model_fields if name != "step"}
    return JobCheckpoint(
        id=checkpoint_id(checkpoint),
        created_at=seconds(checkpoint.registered_at),
        fine_tuned_model_checkpoint=checkpoint_name(job, checkpoint.step),
        fine_tuning_job_id=job.id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(step=checkpoint.step, **fields),
    )


def checkpoint_id(checkpoint: Checkpoint) -> str:
    return f"ftckpt_{checkpoint.id}"


def metric_names(values: Mapping[str, float]) -> dict[str, float]:
    """Under OpenAI's names. A number that JSON does not have is left out."""
    return {_METRICS.get(name, name): value for name, value in values.items() if _is_number(value)}


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _message(mark: Mark, level: str, message: str, data: dict[str, Any] | None) -> Event:
    return Event(
        id=_event_id(mark),
        created_at=seconds(mark.at),
        level=level if level in ("info", "warn", "error") else "info",
        message=_for_callers(message),
        type="message",
        data=data,
    )


def _for_callers(message: str) -> str:
    """A sentence, without the places of the store, which are nobody's business."""
    told = _SAVED_AT.sub(r"\1 saved", message)
    return told[:1].upper() + told[1:]


def _event_id(mark: Mark) -> str:
    """All that a page needs to go on from there: no row has to be looked up."""
    return f"ft-event-{microseconds(mark.at):x}-{mark.kind}{mark.number}"


def _step_message(data: Mapping[str, Any]) -> str:
    of = f"/{data['total_steps']}" if data["total_steps"] else ""
    told = [f"Step {data['step']}{of}"]
    losses = (("training loss", "train_loss"), ("validation loss", "valid_loss"))
    told += [f"{words}={data[name]:.4f}" for words, name in losses if name in data]
    return f"{told[0]}: {', '.join(told[1:])}" if told[1:] else told[0]


def _error(record: Mapping[str, Any] | None) -> JobError | None:
    if record is None:
        return None
    code = str(record.get("code") or "error")
    told = [str(record.get("message") or "it failed")]
    problems: Sequence[Mapping[str, Any]] = record.get("problems") or ()
    told += [f"line {one['line']}: {one['what']} ({one['remedy']})" for one in problems]
    if (more := int(record.get("problem_count") or 0) - len(problems)) > 0:
        told.append(f"… and {more} more")
    if record.get("remedy"):
        told.append(str(record["remedy"]))
    return JobError(code=code, message="; ".join(told), param=_PARAMS.get(code))


def _spec(job: Job) -> JobSpec:
    """As the row has it. One that cannot be read is told with the usual numbers, as a list must not
    fail because of it; the worker that claims the job fails it in words."""
    try:
        return stored_spec(job.spec)
    except SpecError:
        return JobSpec.model_construct(
            base_model=job.base_model, dataset="", method=cast("Any", job.method)
        )


def _integrations(asked: Mapping[str, Any], spec: JobSpec) -> list[dict[str, Any]] | None:
    if given := asked.get("integrations"):
        return list(given)
    if "wandb" not in spec.track:
        return None
    return [{"type": "wandb", "wandb": {"project": spec.track_project or "celora"}}]


def _method(spec: JobSpec) -> AnsweredMethod:
    numbers = answered(spec)
    if isinstance(numbers, AnsweredDpo):
        return AnsweredMethod(type="dpo", dpo=AnsweredDpoMethod(hyperparameters=numbers))
    return AnsweredMethod(type="supervised", supervised=AnsweredSupervised(hyperparameters=numbers))

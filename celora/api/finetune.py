"""The short form: a job in JobSpec's own words, and where it stands."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from celora.api.caller import Reader, Submitter
from celora.api.dataset_urls import admitted
from celora.api.fine_tuning import (
    CONFLICT,
    IdempotencyKey,
    JobId,
    own_job,
    put_in_queue,
    repeated,
)
from celora.api.job_mapping import Files, digest, short_spec
from celora.api.job_requests import ShortForm
from celora.api.model_names import model_name
from models.session import transaction
from models.states import JobState, Stage
from models.tables import Job

router = APIRouter(prefix="/finetune", tags=["short form"])


class Submitted(BaseModel):
    job_id: str
    status: JobState = Field(description="As docs/job-lifecycle.md names them.")


class Standing(Submitted):
    name: str | None
    base_model: str
    method: str
    stage: Stage = Field(description="The first stage that is not finished.")
    activity: str | None
    step: int
    total_steps: int | None
    epoch: float | None
    train_loss: float | None
    trained_tokens: int
    fine_tuned_model: str | None
    evaluation: dict[str, Any] | None = Field(description="Base and tuned model, side by side.")
    error: dict[str, Any] | None


@router.post("", responses=CONFLICT)
def submit(
    caller: Submitter,
    request: ShortForm,
    idempotency_key: IdempotencyKey = None,
) -> Submitted:
    """Put a job in the queue: base model, data, epochs, and whatever else JobSpec has."""
    sent: BaseModel = request
    fields = sent.model_dump(exclude_unset=True)
    kept = {
        "model": fields["base_model"],
        "training_file": fields["dataset"],
        "validation_file": fields.get("eval_dataset"),
        "digest": digest(sent),
    }
    with transaction() as session:
        if (first := repeated(session, caller, idempotency_key, kept)) is not None:
            return _submitted(first)
    training = admitted(caller, fields["dataset"])
    validation = fields.get("eval_dataset")
    if validation is not None:
        validation = admitted(caller, validation, param="eval_dataset")
    spec = short_spec(fields, Files(training, validation, rows=None))
    with transaction() as session:
        job = put_in_queue(session, caller, spec, kept, idempotency_key)
        return _submitted(job)


@router.get("/{job_id}")
def retrieve(caller: Reader, job_id: JobId) -> Standing:
    """Where a job stands."""
    with transaction() as session:
        return _standing(own_job(session, caller, job_id))


def _submitted(job: Job) -> Submitted:
    return Submitted(job_id=job.id, status=JobState(job.state))


def _standing(job: Job) -> Standing:
    done = job.state == JobState.COMPLETED
    return Standing(
        job_id=job.id,
        status=JobState(job.state),
        name=job.name,
        base_model=(job.request or {}).get("model") or job.base_model,
        method=job.method,
        stage=Stage(job.stage),
        activity=job.activity,
        step=job.step,
        total_steps=job.total_steps,
        epoch=job.epoch,
        train_loss=job.train_loss,
        trained_tokens=job.trained_tokens,
        fine_tuned_model=model_name(job) if done else None,
        evaluation=(job.result or {}).get("evaluation"),
        error=_without_place(job.error),
    )


def _without_place(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where it happened is a folder or a URL of the store, which is nobody's business."""
    return error and {name: value for name, value in error.items() if name != "where"}

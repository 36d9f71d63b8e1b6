"""/v1/fine_tuning/jobs: make, find, list, pause, resume and cancel jobs."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, StringConstraints
from sqlalchemy.orm import Session

from celora.api.caller import Caller, Reader, Submitter, no_such, require_own
from celora.api.errors import ApiError
from celora.api.file_store import resolve_training_file
from celora.api.job_answers import FineTuningJob, job_answer
from celora.api.job_mapping import Files, kept, openai_spec
from celora.api.job_requests import CreateJob
from celora.client import put_on_record
from models.errors import NotFoundError, SpecError
from models.queries import jobs
from models.queries.files import find_file
from models.queries.finish import expected_finishes
from models.session import transaction
from models.spec import JobSpec
from models.states import Purpose, StopReason
from models.tables import Job

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

JobId = Annotated[str, Path(max_length=64, description="As it was answered: `ftjob-…`.")]
Limit = Annotated[int, Query(ge=1, le=100, description="How many in a page.")]
After = Annotated[str | None, Query(max_length=64, description="The last id of the page before.")]
IdempotencyKey = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=255)] | None,
    Header(description="A repeated request with the same key makes no second job."),
]
_MAX_SEED = 2_147_483_647

_METADATA: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "description": "`metadata[k]=v`: jobs with that pair; `metadata=null`: without any.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


class JobPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[FineTuningJob]
    has_more: bool


CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"description": "The job's state, or an idempotency key's first use, does not allow it."}
}


@router.post("", responses=CONFLICT)
def create_job(
    caller: Submitter, request: CreateJob, idempotency_key: IdempotencyKey = None
) -> FineTuningJob:
    """Put a job in the queue. `auto`, and what is left out, becomes a number that is answered."""
    asked = kept(request)
    with transaction() as session:
        if (first := repeated(session, caller, idempotency_key, asked)) is not None:
            return answer(session, first)
        training = resolve_training_file(session, caller, request.training_file)
        validation = request.validation_file and resolve_training_file(
            session, caller, request.validation_file, param="validation_file"
        )
        known = find_file(session, caller.tenant_id, request.training_file)
        files = Files(training, validation, rows=known.line_count if known else None)
        spec = openai_spec(request, files, seed=secrets.randbelow(_MAX_SEED + 1))
        job = put_in_queue(session, caller, spec, asked, idempotency_key)
        return answer(session, job)


@router.get("", openapi_extra=_METADATA)
def list_jobs(request: Request, caller: Reader, after: After = None, limit: Limit = 20) -> JobPage:
    """The tenant's jobs, the newest first. Pages stay put while other jobs arrive."""
    metadata = _metadata(request)
    with transaction() as session:
        if after is not None:
            own_job(session, caller, after, missing=_no_cursor)
        found = jobs.list_jobs(
            session,
            tenant=caller.tenant,
            purpose=Purpose.TUNE,
            limit=limit + 1,
            after=after,
            metadata=metadata,
        )
        page = found[:limit]
        finishes = expected_finishes(session, page)
        data = [job_answer(job, finishes) for job in page]
    return JobPage(data=data, has_more=len(found) > limit)


@router.get("/{job_id}")
def retrieve_job(caller: Reader, job_id: JobId) -> FineTuningJob:
    """A job as it stands."""
    with transaction() as session:
        return answer(session, own_job(session, caller, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(caller: Submitter, job_id: JobId) -> FineTuningJob:
    """One that runs stops within seconds; one that has ended is answered as it is."""
    with transaction() as session:
        own_job(session, caller, job_id)
        return answer(session, jobs.request_stop(session, job_id, StopReason.CANCEL))


@router.post("/{job_id}/pause", responses=CONFLICT)
def pause_job(caller: Submitter, job_id: JobId) -> FineTuningJob:
    """Hold a job: one that runs writes a checkpoint first."""
    with transaction() as session:
        own_job(session, caller, job_id)
        return answer(session, jobs.request_stop(session, job_id, StopReason.PAUSE))


@router.post("/{job_id}/resume", responses=CONFLICT)
def resume_job(caller: Submitter, job_id: JobId) -> FineTuningJob:
    """Let a paused job go on from its newest checkpoint."""
    with transaction() as session:
        own_job(session, caller, job_id)
        return answer(session, jobs.resume_job(session, job_id))


def own_job(
    session: Session,
    caller: Caller,
    job_id: str,
    *,
    missing: Callable[[str], Exception] = lambda job_id: no_such("fine-tuning job", job_id),
) -> Job:
    """Raises NotFoundError, or what `missing` makes, for what is not there or belongs to others."""
    try:
        job = jobs.get_job(session, job_id.replace("\0", "?"))  # Postgres holds no NUL
        require_own(caller, job.tenant_id, "fine-tuning job", job_id)
    except NotFoundError:
        raise missing(job_id) from None
    if job.purpose != Purpose.TUNE:
        raise missing(job_id)
    return job


def repeated(
    session: Session, caller: Caller, idempotency_key: str | None, request: dict[str, Any]
) -> Job | None:
    """The job that this request has made before: whatever has become of its data since, a caller
    who did not hear the answer is to get it. Raises ApiError as `put_in_queue`."""
    if idempotency_key is None:
        return None
    job = jobs.find_by_key(session, caller.tenant, idempotency_key)
    return job and _same_request(job, request)


def put_in_queue(
    session: Session,
    caller: Caller,
    spec: JobSpec,
    request: dict[str, Any],
    idempotency_key: str | None,
) -> Job:
    """Raises ApiError for a key that was used for another request; SpecError, InputError."""
    if spec.after is not None:  # else `after` would tell whose ids there are
        own_job(session, caller, spec.after, missing=_no_predecessor)
    job = put_on_record(
        session,
        spec,
        tenant=caller.tenant,
        user=caller.user,
        idempotency_key=idempotency_key,
        request=request,
    )
    return _same_request(job, request)


def answer(session: Session, job: Job) -> FineTuningJob:
    return job_answer(job, expected_finishes(session, [job]))


def _same_request(job: Job, request: dict[str, Any]) -> Job:
    if (job.request or {}).get("digest") != request["digest"]:
        raise ApiError(
            409,
            "this idempotency key was used before, for another request",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return job


def _no_cursor(job_id: str) -> ApiError:
    return ApiError(400, f"there is no job {job_id!r}", code="invalid_cursor", param="after")


def _no_predecessor(job_id: str) -> SpecError:
    return SpecError(f"there is no job {job_id}", where="after")


def _metadata(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v` pairs; an empty one for `metadata=null`; None where there is no filter."""
    pairs = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    plain = request.query_params.get("metadata")
    if plain is None or plain == "":
        found = pairs or None
    elif plain == "null" and not pairs:
        found = {}
    else:
        raise ApiError(
            400,
            "filter with metadata[key]=value, or with metadata=null",
            code="invalid_value",
            param="metadata",
        )
    if any("\0" in text for pair in (found or {}).items() for text in pair):
        raise ApiError(
            400, "a NUL character is in no metadata", code="invalid_value", param="metadata"
        )
    return found

"""/v1/files: upload training data, list, read and delete it; fetch result files."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.orm import Session
from starlette.datastructures import FormData, UploadFile

from celora.api.caller import Caller, Reader, Submitter, no_such
from celora.api.errors import ApiError, too_large
from celora.api.file_store import content_of, delete_file, keep_file, own_file
from celora.api.result_files import job_of_result, own_finished, result_csv, result_file_id
from models.queries import files
from models.session import transaction
from models.settings import settings
from models.tables import Job, StoredFile

router = APIRouter(prefix="/v1/files", tags=["files"])

_uploads = CapacityLimiter(4)  # files that are looked at and stored at once; others wait
_LONGEST_NAME = 255
_COLUMN = re.compile(r"columns\[(\w{1,64})\]")
FileId = Annotated[str, Path(max_length=64, description="As it was answered: `file-…`.")]


class File(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    sha256: str = Field(description="Of the content, hexadecimal.")

    @classmethod
    def of(cls, file: StoredFile) -> File:
        return cls(
            id=file.id,
            bytes=file.size_bytes,
            created_at=_seconds(file.created_at),
            expires_at=None if file.expires_at is None else _seconds(file.expires_at),
            filename=file.filename,
            purpose=file.purpose,
            sha256=file.digest,
        )


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class FilePage(BaseModel):
    object: Literal["list"] = "list"
    data: list[File]
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


_UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "JSON Lines, one row a line, not compressed.",
                        },
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "columns": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                            "description": "For rows of no usual shape: `columns[prompt]=question`,"
                            " as the job's own `columns`.",
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3600,
                            "maximum": 2_592_000,
                        },
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_FORM)
async def create_file(request: Request, caller: Submitter) -> File:
    """Upload training data. Its rows are looked at first: a bad one is answered with its line."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "send the file as multipart/form-data", code="invalid_form")
    async with request.form(max_files=1, max_fields=16, max_part_size=4096) as form:
        stored = await _keep(form, caller)
    return File.of(stored)


@router.get("")
def list_files(
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FilePage:
    """The tenant's files, the newest first."""
    with transaction() as session:
        place = None if after is None else files.find_place(session, caller.tenant_id, after)
        if after is not None and place is None:
            raise no_such("file", after)
        found = files.list_files(
            session,
            caller.tenant_id,
            limit=limit + 1,
            newest_first=order == "desc",
            after=place,
            purpose=purpose,
        )
    page = [File.of(file) for file in found[:limit]]
    return FilePage(
        data=page,
        has_more=len(found) > limit,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


@router.get("/{file_id}")
def retrieve_file(caller: Reader, file_id: FileId) -> File:
    """What is known of an upload, or of a job's result file."""
    with transaction() as session:
        if (job_id := job_of_result(file_id)) is not None:
            return _result(session, own_finished(session, caller, job_id))
        return File.of(own_file(session, caller, file_id))


@router.delete("/{file_id}")
def remove_file(caller: Submitter, file_id: FileId) -> FileDeleted:
    """Delete a file; refused with 409 while a job that is not prepared yet has to read it."""
    delete_file(caller, file_id)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}},
)
def file_content(caller: Reader, file_id: FileId) -> StreamingResponse:
    """The file as it was uploaded, byte for byte."""
    with transaction() as session:
        if (job_id := job_of_result(file_id)) is not None:
            content = result_csv(session, own_finished(session, caller, job_id))
            return StreamingResponse(iter([content]), media_type="text/csv")
        file = own_file(session, caller, file_id)
    headers = {
        "content-length": str(file.size_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(
        content_of(file), media_type="application/octet-stream", headers=headers
    )


def _result(session: Session, job: Job) -> File:
    content = result_csv(session, job)
    return File(
        id=result_file_id(job.id),
        bytes=len(content),
        created_at=_seconds(job.finished_at or job.created_at),
        expires_at=None,
        filename="step_metrics.csv",
        purpose="fine-tune-results",
        sha256=hashlib.sha256(content).hexdigest(),
    )


async def _keep(form: FormData, caller: Caller) -> StoredFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "the form has no file", code="missing", param="file")
    if form.get("purpose") != "fine-tune":
        message = "only files with the purpose 'fine-tune' are taken"
        raise ApiError(400, message, code="wrong_purpose", param="purpose")
    if file.size is not None and file.size > settings().api_file_bytes:
        raise too_large(settings().api_file_bytes)
    keep = partial(
        keep_file,
        caller.tenant_id,
        caller.user,
        file.file,
        filename=_plain_name(file.filename),
        purpose="fine-tune",
        lives_seconds=_lives(form),
        columns=_columns(form),
    )
    return await run_sync(keep, limiter=_uploads)


def _columns(form: FormData) -> dict[str, str]:
    """`columns[prompt]=question`: which columns play which part, as the job will say as well."""
    found = ((_COLUMN.fullmatch(name), value) for name, value in form.multi_items())
    return {name[1]: value for name, value in found if name and isinstance(value, str)}


def _lives(form: FormData) -> int | None:
    """Seconds after which the file goes, where the form says so. Raises ApiError."""
    given = {
        name: form[f"expires_after[{name}]"]
        for name in ExpiresAfter.model_fields
        if f"expires_after[{name}]" in form
    }
    if not given:
        return None
    try:
        return ExpiresAfter.model_validate(given).seconds
    except ValidationError:
        message = "give the anchor created_at, and 3600 to 2592000 seconds"
        raise ApiError(400, message, code="invalid_value", param="expires_after") from None


def _plain_name(name: str | None) -> str:
    """What the file is called, for people: its last part, without what a terminal would act on."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in last)
    return shown[:_LONGEST_NAME] or "upload.jsonl"


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())

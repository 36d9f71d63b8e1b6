"""What came of a job: its events, its checkpoints, and the stream of both as they come."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from celora.api.caller import Caller, Reader
from celora.api.errors import ApiError
from celora.api.feeds import Watch, feeds_of
from celora.api.fine_tuning import After, JobId, Limit, own_job
from celora.api.job_answers import (
    Event,
    JobCheckpoint,
    checkpoint_answer,
    checkpoint_id,
    entry_answer,
    parse_event_id,
)
from celora.api.open_streams import HeldStream, leave_place, take_place
from celora.api.stream_messages import parse_place
from celora.api.streams import told
from models.queries import products
from models.queries.story import metrics_at, read_story
from models.session import transaction

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_CHECKPOINT_ID = re.compile(r"ftckpt_(\d{1,18})", re.ASCII)


class EventPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class CheckpointPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobCheckpoint]
    has_more: bool
    first_id: str | None
    last_id: str | None


@router.get("/{job_id}/events")
def list_events(caller: Reader, job_id: JobId, after: After = None, limit: Limit = 20) -> EventPage:
    """The job's story in plain words, and its steps with their metrics; the newest first."""
    mark = None if after is None else parse_event_id(after)
    if after is not None and mark is None:
        raise _no_cursor("event", after)
    with transaction() as session:
        job = own_job(session, caller, job_id)
        found = read_story(session, job.id, limit=limit + 1, before=mark)
    page = [entry_answer(entry, job.total_steps) for entry in found[:limit]]
    return EventPage(data=page, has_more=len(found) > limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    caller: Reader,
    job_id: JobId,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> CheckpointPage:
    """Those that are kept (`celora.keep_checkpoints`), the newest first."""
    last = None if after is None else _CHECKPOINT_ID.fullmatch(after)
    if after is not None and last is None:
        raise _no_cursor("checkpoint", after)
    with transaction() as session:
        job = own_job(session, caller, job_id)
        standing = sorted(products.checkpoints_of(session, job.id), key=lambda one: -one.id)
        found = [one for one in standing if last is None or one.id < int(last[1])]
        page = found[:limit]
        steps = metrics_at(session, job.id, [one.step for one in page])
        data = [checkpoint_answer(job, one, steps.get(one.step, {})) for one in page]
    return CheckpointPage(
        data=data,
        has_more=len(found) > limit,
        first_id=checkpoint_id(page[0]) if page else None,
        last_id=checkpoint_id(page[-1]) if page else None,
    )


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Messages `event`, `metrics`, `progress`, and at the job's end `end`.",
        "content": {
            "text/event-stream": {
                "schema": {  # of each message
                    "type": "object",
                    "required": ["id", "event", "data"],
                    "properties": {
                        "id": {"type": "string"},
                        "event": {"enum": ["event", "metrics", "progress", "end"]},
                        "data": {"type": "string", "description": "JSON."},
                    },
                }
            }
        },
    },
    204: {"description": "All was told before: do not ask again."},
    429: {"description": "The key's rate is spent, or it has too many streams open."},
}


@router.get("/{job_id}/stream", response_class=EventSourceResponse, responses=_STREAM)
async def stream_job(
    request: Request,
    caller: Reader,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="Go on behind that message, without loss or repeat.")
    ] = None,
) -> Response:
    """The job as it goes, as server-sent events, until it ends or the key is revoked."""
    place, was_told = parse_place(last_event_id or "")
    await run_in_threadpool(_require_own, caller, job_id)
    take_place(request.app, caller.key_id)
    try:
        watch = Watch(caller.key_id)
        messages = told(feeds_of(request.app), job_id, place, watch, end_was_told=was_told)
        first = await anext(messages, None)
    except BaseException:
        leave_place(request.app, caller.key_id)
        raise
    if first is None:
        leave_place(request.app, caller.key_id)
        return Response(status_code=204)

    async def all_of_them() -> AsyncIterator[bytes]:
        async with aclosing(messages):  # a watcher that leaves leaves the feed at once
            yield first
            async for message in messages:
                yield message

    stream = HeldStream(
        all_of_them(), ping=15, sep="\n", shutdown_event=anyio.Event(), shutdown_grace_period=3
    )
    stream.key_id = caller.key_id
    return stream


def _require_own(caller: Caller, job_id: str) -> None:
    with transaction() as session:
        own_job(session, caller, job_id)


def _no_cursor(what: str, text: str) -> ApiError:
    return ApiError(400, f"there is no {what} {text!r}", code="invalid_cursor", param="after")

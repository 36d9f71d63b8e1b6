"""Server-sent events of a job. Each has an id that says how far its reader has got.

Sent back as `Last-Event-ID` it is where a stream goes on, in this process or in another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from celora.api.job_answers import FineTuningJob, event_answer, metric_names, status
from models.queries.following import News, Place
from models.tables import Job

_PLACE = re.compile(
    r"(\d{1,18})\.(\d{1,18})-(\d{1,16})\.(\d{1,9})\.(\d{1,18})\.([^\r\n\0]{0,200}?)(!end)?",
    re.ASCII,
)
_END = "!end"


def parse_place(text: str) -> tuple[Place, bool]:
    """What a message's id says, and whether it was the last one. The beginning for any other."""
    found = _PLACE.fullmatch(text)
    if found is None:
        return Place(), False
    xact, event, micros, step, fence, name, end = found.groups()
    place = Place((int(xact), int(event)), (int(micros), int(step), name), int(fence))
    return place, end is not None


def news_messages(news: News, place: Place) -> Iterator[bytes]:
    """What is new for one who has seen everything up to `place`, where `news` may begin before."""
    for event in news.events:
        key = (event.xact, event.id)
        if key > place.event:
            place = replace(place, event=key)
            yield _message("event", event_answer(event).model_dump_json().encode(), place)
    points = [point for point in news.points if point.key > place.point]
    if points:
        steps: dict[int, dict[str, float]] = {}
        for point in points:
            steps.setdefault(point.step, {})[point.name] = point.value
        data = {"points": [{"step": step, **metric_names(steps[step])} for step in steps]}
        place = replace(place, point=points[-1].key, fence=points[-1].fence)
        yield _message("metrics", to_json(data), place)


def progress_data(job: Job) -> bytes:
    data: dict[str, Any] = {
        "status": status(job),
        "stage": job.stage,
        "activity": job.activity,
        "step": job.step,
        "total_steps": job.total_steps,
        "epoch": job.epoch,
        "train_loss": job.train_loss,
        "tokens_per_second": job.tokens_per_second,
        "trained_tokens": job.trained_tokens,
    }
    return to_json(data, inf_nan_mode="null")


def progress_message(data: bytes, place: Place) -> bytes:
    return _message("progress", data, place)


def end_message(job: FineTuningJob, place: Place) -> bytes:
    return _message("end", job.model_dump_json().encode(), place, end=True)


def _message(kind: str, data: bytes, place: Place, *, end: bool = False) -> bytes:
    """One server-sent event. JSON has no line breaks but escaped ones."""
    (xact, event), (micros, step, name) = place.event, place.point
    identity = f"{xact}.{event}-{micros}.{step}.{place.fence}.{name}{_END if end else ''}"
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (identity.encode(), kind.encode(), data)

"""The flow of a job in one place: the chains, and where each stage runs.

    preprocess            on celora.cpu
    train | evaluate      both on the queue of the GPU that the dispatcher chose

A chain's tail is sent when its head returns. A stage that did not finish raises `Ignore`, so
nothing follows. What is lost on the way is published again from the first unfinished stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import chain

from models.states import Stage
from tasks.names import EVALUATE, PREPROCESS, TRAIN

if TYPE_CHECKING:
    from celery.canvas import Signature

# A silent broker must not hold a worker after its stage has ended.
CONFIRM_SECONDS = 5.0


def ticket(job_id: str, fence: int, stage: Stage, queue: str, evaluate: bool) -> Signature:  # noqa: FBT001 (the dispatcher passes a row's columns in order)
    """The chain to publish for an attempt whose first unfinished stage is `stage`.

    Immutable: a result never becomes an argument. Every publish gives it new task ids.
    """
    if stage is Stage.PREPROCESS:
        return _signature(PREPROCESS, job_id, fence, queue)
    if stage is Stage.EVALUATE:
        return _signature(EVALUATE, job_id, fence, queue)
    train = _signature(TRAIN, job_id, fence, queue)
    return chain(train, _signature(EVALUATE, job_id, fence, queue)) if evaluate else train


def _signature(task: str, job_id: str, fence: int, queue: str) -> Signature:
    from tasks.app import app

    return app.signature(
        task,
        args=(job_id, fence),
        immutable=True,
        options={"queue": queue, "ignore_result": True, "confirm_timeout": CONFIRM_SECONDS},
    )

"""The flow of a job in one place: the chains, and where each stage runs.

    preprocess            on celora.cpu
    train | evaluate      both on the queue of the GPU that the dispatcher chose
    export, generate      there as well, each alone: on what a job has trained

A chain's tail is sent when its head returns. A stage that did not finish raises `Ignore`, so
nothing follows. What is lost on the way is published again from the first unfinished stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import chain

from models.states import Stage
from tasks.names import EVALUATE, EXPORT, GENERATE, PREPROCESS, TRAIN

if TYPE_CHECKING:
    from celery.canvas import Signature

# A stage that nothing follows, and its task.
_ALONE = {
    Stage.PREPROCESS: PREPROCESS,
    Stage.EVALUATE: EVALUATE,
    Stage.EXPORT: EXPORT,
    Stage.GENERATE: GENERATE,
}

# A silent broker must not hold a worker after its stage has ended.
CONFIRM_SECONDS = 5.0


def ticket(
    job_id: str,
    fence: int,
    stage: Stage,
    queue: str,
    evaluate: bool,  # noqa: FBT001 (the dispatcher passes a row's columns in order)
    *,
    shown: str | None = None,
) -> Signature:
    """The chain to publish for an attempt whose first unfinished stage is `stage`.

    Immutable: a result never becomes an argument. Every publish gives it new task ids. `shown` is
    what Flower tells of each of its tasks beside their arguments: a header, read by no worker.
    """

    def task(name: str) -> Signature:
        return _signature(name, job_id, fence, queue, shown)

    if stage in _ALONE:
        return task(_ALONE[stage])
    return chain(task(TRAIN), task(EVALUATE)) if evaluate else task(TRAIN)


def _signature(task: str, job_id: str, fence: int, queue: str, shown: str | None) -> Signature:
    from tasks.app import app

    options = {"queue": queue, "ignore_result": True, "confirm_timeout": CONFIRM_SECONDS}
    options["argsrepr"] = f"{job_id}, attempt {fence}"
    if shown is not None:
        options["kwargsrepr"] = shown
    return app.signature(task, args=(job_id, fence), immutable=True, options=options)

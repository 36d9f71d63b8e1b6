"""How a stage's end reads in Celery: its state and a line of text, for Flower and the worker's log.

    done                       SUCCESS, with a summary; the chain's tail is sent
    the job failed             FAILURE, with the short cause
    cancelled, paused          REVOKED
    placed again later         RETRY  (preempted, drained, lost, a smaller micro-batch)
    a ticket that was dropped  REJECTED

Celery reports nothing of a task that raises `Ignore`: Flower would show it as started for ever. So
the worker's main process, which sends all events of a task, sends the fitting one.
"""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import Task
from celery.exceptions import Ignore
from celery.worker.request import Request

from gpu_worker.told import Told
from models.states import JobState


class StageFailed(Exception):  # noqa: N818 (its name is read in Flower)
    """The job failed. It is on record: this only shows."""

    def __repr__(self) -> str:
        return str(self)


class StageLeft(Ignore):  # type: ignore[misc]  # Celery ships no types
    """The stage is not done, and the chain's tail must not run."""

    def __init__(self, event: str, text: str) -> None:
        super().__init__(event, text)
        self.event, self.text = event, text

    def __repr__(self) -> str:
        return self.text


def answer(told: Told) -> str:
    """The text of a stage that is done. Raises StageFailed, StageLeft: no tail follows."""
    if told.done:
        return told.text
    match told.state:
        case JobState.FAILED:
            raise StageFailed(told.text)
        case JobState.CANCELLED | JobState.PAUSED:
            raise StageLeft("task-revoked", told.text)
        case None:
            raise StageLeft("task-rejected", told.text)
        case _:
            raise StageLeft("task-retried", told.text)


class StageRequest(Request):  # type: ignore[misc]  # as above
    """Lives in the worker's main process."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 (Celery's signature)
        """Flower's list shows results, and not what failures and retries are about."""
        if type == "task-failed":
            fields["result"] = fields["exception"]
        elif type == "task-succeeded":
            fields["result"] = str(fields["result"]).strip("'")
        super().send_event(type, **fields)

    def on_failure(
        self,
        exc_info: Any,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 (Celery's signature)
        return_ok: bool = False,  # noqa: FBT001, FBT002 (as above)
    ) -> Any:
        raised = exc_info.exception
        if isinstance(raised, ExceptionWithTraceback):
            raised = raised.exc
        if isinstance(raised, StageLeft):
            self.send_event(raised.event, result=raised.text)
        return super().on_failure(exc_info, send_failed_event, return_ok)


class StageTask(Task):  # type: ignore[misc]  # as above
    Request = StageRequest
    throws = (StageFailed,)  # no error of the worker's: its log has a line for it, no traceback

    def on_failure(
        self, exc: BaseException, _id: str, _args: Any, _kwargs: Any, einfo: Any
    ) -> None:
        """In the pool child, before Celery reports: where we raised it says nothing."""
        if isinstance(exc, StageFailed):
            einfo.traceback = str(exc)

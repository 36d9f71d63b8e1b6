"""Celery's signals: how a worker's main process and its pool child tell each other what happens.

The main process keeps the device's worker lock, passes a drain on to the child, and writes down
what reaches only it: a task that Flower terminated, messages that nobody understands.
(Celery ships no types: hence the ignores on its decorators.)
"""

from __future__ import annotations

import gc
import logging
from typing import Any

from billiard.common import terminate_handler_fired
from celery import bootsteps, signals

from gpu_worker.devices import own_device
from gpu_worker.gpu_session import GpuSession
from gpu_worker.session import WorkerSession
from models.session import forget_connections
from models.settings import settings
from models.states import Stage
from tasks import children
from tasks.app import app
from tasks.broker import MAIN_PROCESS_OPTIONS
from tasks.mainprocess import MainProcess
from tasks.names import EVALUATE, EXPORT, GENERATE, PREPROCESS, TRAIN, gpu_queue

_log = logging.getLogger(__name__)

_STAGES = {
    PREPROCESS: Stage.PREPROCESS,
    TRAIN: Stage.TRAIN,
    EVALUATE: Stage.EVALUATE,
    EXPORT: Stage.EXPORT,
    GENERATE: Stage.GENERATE,
}

_main: MainProcess | None = None
_transport_options = dict(app.conf.broker_transport_options)


def use_transport_options(changed: dict[str, Any]) -> None:
    """What this process does otherwise than the application's settings say; RabbitMQ only."""
    if "confirm_publish" in _transport_options:
        app.conf.broker_transport_options = _transport_options | changed


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def start_main_process(sender: Any, **_: object) -> None:
    """Before the pool is made. Leaves the process when another worker serves the device."""
    global _main  # noqa: PLW0603 (one per process is what it means)
    use_transport_options(MAIN_PROCESS_OPTIONS)
    device = own_device()
    _main = MainProcess(str(sender.hostname), device)
    _main.begin()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def tell_child_to_drain(**_: object) -> None:
    """In the signal handler of SIGTERM: Celery waits for the task, but tells the child nothing."""
    if _main is not None:
        _main.drain_children()


class DrainOnClose(bootsteps.StartStopStep):  # type: ignore[misc]
    """A worker that is told to stop over the broker (Flower's button) gets no signal: it drains
    as its parts close, before the pool is waited for."""

    def close(self, _parent: Any) -> None:
        if _main is not None:
            _main.drain_children()


app.steps["worker"].add(DrainOnClose)


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def cancel_terminated_job(
    sender: Any = None,
    request: Any = None,
    terminated: bool = False,  # noqa: FBT001, FBT002 (Celery's signature)
    **_: object,
) -> None:
    """Flower's Terminate has killed the child: the job is cancelled, not run again.

    It fires with `terminated=False` too, for a message whose id was revoked before: that says
    nothing about the job.
    """
    if not terminated or _main is None or getattr(sender, "name", None) not in _STAGES:
        return
    job_id, fence = request.args
    _main.cancel(job_id, fence, _STAGES[sender.name])


@signals.task_unknown.connect  # type: ignore[untyped-decorator]
def count_unknown_task(name: str = "", **_: object) -> None:
    if _main is not None:
        _main.count("unknown_tasks", f"a message for an unknown task was dropped: {name!r}")


@signals.task_rejected.connect  # type: ignore[untyped-decorator]
def count_rejected_message(message: Any = None, **_: object) -> None:
    if _main is not None:
        kind = getattr(message, "content_type", None)
        _main.count("rejected_messages", f"a message was dropped: content type {kind!r}")


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def start_child(**_: object) -> None:
    """In a new pool child, before its first task."""
    if _main is None:
        return
    gc.freeze()  # what was imported stays: no collection has to look through it again
    forget_connections()
    use_transport_options({})
    main = _main
    if main.device is None:
        session: WorkerSession = WorkerSession(main.worker)
    else:
        queue = gpu_queue(settings().resolved_host, main.device.index)
        session = GpuSession(main.worker, main.device, queue)
        session.start(main.cancels_written)
    children.set_session(session)
    main.listen_for_drain(session.drain)


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def end_child(**_: object) -> None:
    """As a pool child ends, by itself or by a signal; after SIGKILL the kernel ends the trainer."""
    session = children.session()
    if isinstance(session, GpuSession):
        session.leave(in_order=not terminate_handler_fired())

"""What a worker's pool child holds between its tasks: one session, made when the child starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import SetupError

if TYPE_CHECKING:
    from gpu_worker.gpu_session import GpuSession
    from gpu_worker.session import WorkerSession

_session: WorkerSession | None = None


def set_session(session: WorkerSession) -> None:
    global _session  # noqa: PLW0603 (one per process is what it means)
    _session = session


def session() -> WorkerSession | None:
    return _session


def worker_session() -> WorkerSession:
    if _session is None:
        raise SetupError(
            "this process is no pool child of a Celora worker",
            remedy="start workers with `celora cpu-worker` and `celora gpu-worker`",
        )
    return _session


def gpu_session() -> GpuSession:
    from gpu_worker.gpu_session import GpuSession

    session = worker_session()
    if not isinstance(session, GpuSession):
        raise SetupError(
            "this worker has no device, but consumes from a GPU's queue",
            remedy="start GPU workers with `celora gpu-worker`",
        )
    return session

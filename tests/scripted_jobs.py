"""Scripted jobs on real workers: what tests of the pool ask again and again."""

from __future__ import annotations

import psutil
from sqlalchemy import select

from models.queries import history, jobs
from models.queries.gpus import GpuView, list_gpus
from models.session import transaction
from models.spec import JobSpec
from models.tables import Attempt, Job, Ticket
from tests.stack import Running, Stack

# Time-outs are compressed by configuration alone.
FAST = {
    "CELORA_LEASE_SECONDS": "6",
    "CELORA_RENEW_SECONDS": "1",
    "CELORA_CONTROL_SECONDS": "0.3",
    "CELORA_KILL_MARGIN_SECONDS": "2",
    "CELORA_STOP_GRACE_SECONDS": "10",
    "CELORA_CANCEL_GRACE_SECONDS": "2",
    "CELORA_POLL_SECONDS": "1",
    "CELORA_RESEND_SECONDS": "3",
    "CELORA_GPU_HEARTBEAT_SECONDS": "1",
    "CELORA_GPU_STALE_SECONDS": "8",
}


def start_gpu_worker(stack: Stack, slots: int = 2, **extra: str) -> Running:
    running = stack.start("gpu-worker", "--devices", f"cpu:{slots}", **extra)
    stack.wait_until("the slots are free", lambda: words() == ["free"] * slots)
    return running


def gpu_worker(stack: Stack) -> Running:
    return next(one for one in stack.running if one.name == "gpu-worker")


def gpus() -> list[GpuView]:
    with transaction() as session:
        return list_gpus(session)


def words() -> list[str]:
    return [gpu.state for gpu in gpus()]


def submit(script: str, **fields: object) -> str:
    spec = JobSpec.model_validate({"base_model": f"scripted:?{script}", "dataset": "none"} | fields)
    with transaction() as session:
        return jobs.insert_job(session, spec, tenant="default", user="ada").id


def job(job_id: str) -> Job:
    with transaction() as session:
        return jobs.get_job(session, job_id)


def tries(job_id: str) -> list[Attempt]:
    """The job's attempts on a device, in order."""
    with transaction() as session:
        return list(
            session.scalars(
                select(Attempt)
                .where(Attempt.job_id == job_id, Attempt.gpu_id.is_not(None))
                .order_by(Attempt.fence)
            )
        )


def outcomes(job_id: str) -> list[str | None]:
    return [attempt.outcome for attempt in tries(job_id)]


def in_state(stack: Stack, job_id: str, state: str, *, seconds: float = 30) -> Job:
    stack.wait_until(f"{job_id} is {state}", lambda: job(job_id).state == state, seconds=seconds)
    return job(job_id)


def at_step(stack: Stack, job_id: str, step: int) -> Attempt:
    """The job's live attempt, once it has got that far."""
    stack.wait_until(f"{job_id} is at step {step}", lambda: job(job_id).step >= step, seconds=30)
    return tries(job_id)[-1]


def gpu_of(attempt: Attempt) -> GpuView:
    return next(gpu for gpu in gpus() if gpu.id == attempt.gpu_id)


def trainer_of(attempt: Attempt) -> psutil.Process:
    assert attempt.trainer_pid is not None
    return psutil.Process(attempt.trainer_pid)


def family(trainer: psutil.Process) -> tuple[psutil.Process, psutil.Process]:
    """The pool child above a trainer, and the worker's main process above that."""
    child = trainer.parent()
    assert child is not None
    main = child.parent()
    assert main is not None
    return child, main


def worker_main(stack: Stack, gpu: GpuView) -> psutil.Process:
    """The Celery worker of a device, below the launcher."""
    workers = psutil.Process(gpu_worker(stack).pid).children()
    return next(one for one in workers if gpu.worker in one.cmdline())


def pool_child(main: psutil.Process) -> psutil.Process:
    return next(child for child in main.children() if "tasks.aside" not in child.cmdline())


def tickets(job_id: str) -> list[Ticket]:
    """Those of its training that are still kept."""
    with transaction() as session:
        ours = (Ticket.job_id == job_id) & (Ticket.stage == "train")
        return list(session.scalars(select(Ticket).where(ours)))


def steps_once(job_id: str, total: int) -> None:
    """Every step stands in the curve, and none twice."""
    with transaction() as session:
        points = history.metrics_of(session, job_id, ["train_loss"])
    assert [point.step for point in points] == list(range(1, total + 1))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

"""One job from its submit to its end in this process, without the broker: what the container of
`celora k8s-job` runs.

    find or insert the job → take its next turn → prepare | train, evaluate → … → exit code

The same code does the stages as in the pool's workers. Only who places differs: this process
itself, on its own device (models/queries/own_pod.py). Killed and started again with the same key it
ends what it left, and goes on from the job's newest checkpoint at the next fence.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from gpu_worker.devices import Device, discover
from gpu_worker.patience import patiently
from gpu_worker.pod_session import PodSession
from gpu_worker.session import WorkerSession
from gpu_worker.supervise import run_stage
from gpu_worker.told import Told
from models.errors import SetupError, SpecError, StateError, TrainingError
from models.gpu_wish import GpuWish
from models.queries import jobs, own_pod
from models.queries.own_pod import Turn
from models.session import transaction
from models.settings import settings
from models.spec import JobSpec
from models.states import TERMINAL, JobState, Outcome, Stage
from models.tables import Job
from tasks.mainprocess import MainProcess
from tasks.preparation import prepare_job

T = TypeVar("T")

# Started again, it goes on: stopped by SIGTERM or `celora drain` (EX_TEMPFAIL of sysexits.h).
AGAIN = 75
# No start will help: the job has failed; a field, the data or the base model is wrong; the job is
# paused, or waits for another. `celora k8s-job` has Kubernetes give up on these.
FOR_GOOD = (TrainingError.exit_code, SpecError.exit_code, StateError.exit_code)

_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def run(spec: JobSpec, *, key: str, tenant: str, user: str, devices: str) -> int:
    """Run the job that `key` names until it is over or this process is to stop; the exit code.

    Raises SpecError, InputError, StateError, SetupError; UnavailableError when the database was
    away for longer than CELORA_FETCH_PATIENCE_SECONDS.
    """
    if spec.scripted and not settings().allow_scripted:
        raise SpecError("scripted jobs are not allowed here", where="base_model")
    device = discover(devices)[0]
    _require_fit(spec, device)
    worker = f"pod@{settings().resolved_host}"
    main = MainProcess(worker, device)
    main.begin()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: main.drain_children())
    pod = _Pod(worker, device)
    main.listen_for_drain(pod.drain)
    pod.on_device.start()
    try:
        return pod.run(spec, key=key, tenant=tenant, user=user)
    finally:
        pod.on_device.leave(in_order=True)


class _Pod:
    def __init__(self, worker: str, device: Device) -> None:
        self.worker = worker
        self.preparing = WorkerSession(worker)
        self.on_device = PodSession(worker, device)

    def drain(self) -> None:
        self.preparing.drain()
        self.on_device.drain()

    def run(self, spec: JobSpec, *, key: str, tenant: str, user: str) -> int:
        def submit() -> Job:
            with transaction() as session:
                return own_pod.find_or_insert(session, spec, tenant=tenant, user=user, key=key)

        job = self._patiently(submit)
        _log.info("job %s is %s", job.id, job.state)
        told: Told | None
        while True:
            stops = self.on_device.draining.is_set()
            turn = None if stops else self._next_turn(job)
            told = self._play(job.id, turn) if turn is not None else None
            if told is not None:
                _log.info("job %s: %s", job.id, told.text)
            job, moves = self._patiently(partial(_look, job.id))
            if JobState(job.state) in TERMINAL or job.state == JobState.PAUSED:
                return _conclude(job)
            if moves or self.on_device.draining.is_set():
                _log.info("job %s stops here; it goes on when it is started again", job.id)
                return AGAIN
            if not told:  # lost, or not claimed: at once it may well end the same way
                self.on_device.draining.wait(_PAUSE_SECONDS)

    def _next_turn(self, job: Job) -> Turn | None:
        gpu_id = self.on_device.registered_as()
        if job.state != JobState.PENDING:
            self.on_device.require_free()

        def take() -> Turn | None:
            with transaction() as session:
                return own_pod.take_turn(session, job.id, gpu_id, self.worker)

        return self._patiently(take)

    def _play(self, job_id: str, turn: Turn) -> Told:
        if turn.stage is Stage.PREPROCESS:
            return prepare_job(self.preparing, job_id, turn.fence)
        told = run_stage(self.on_device, job_id, turn.fence, turn.stage)
        if told.done and told.state is JobState.RUNNING:  # the attempt goes on
            _log.info("job %s: %s", job_id, told.text)
            told = run_stage(self.on_device, job_id, turn.fence, Stage.EVALUATE)
        return told

    def _patiently(self, fetch: Callable[[], T]) -> T:
        return patiently(fetch, say=_log.warning, wait=self.on_device.draining.wait)


def _look(job_id: str) -> tuple[Job, bool]:
    """The job as it stands, and whether its last attempt was asked to leave this device."""
    with transaction() as session:
        tried = jobs.attempts_of(session, job_id)
        moves = bool(tried) and tried[-1].outcome in {Outcome.DRAINED, Outcome.PREEMPTED}
        return jobs.get_job(session, job_id), moves


def _conclude(job: Job) -> int:
    if job.state == JobState.COMPLETED:
        _log.info("job %s is completed: %s", job.id, job.adapter_url)
        return 0
    if job.state == JobState.CANCELLED:
        _log.info("job %s was cancelled: there is nothing more to do", job.id)
        return 0
    if job.state == JobState.PAUSED:
        raise StateError(
            f"job {job.id} is paused",
            remedy=f"`celora resume {job.id}`, then apply the Kubernetes Job anew",
        )
    error = job.error or {}
    raise TrainingError(
        f"job {job.id} failed: {error.get('message') or 'it does not say why'}",
        where=error.get("where"),
        remedy=error.get("remedy"),
    )


def _require_fit(spec: JobSpec, device: Device) -> None:
    """Another node may have what this one lacks."""
    wish = GpuWish.of(spec)
    fits = device.memory_bytes >= wish.memory_bytes and (wish.model or "") in device.model.lower()
    if not fits:
        raise SetupError(
            f"the job asks for {wish.words()}, and the device here is {device.model}"
            f" ({device.memory_bytes / 1e9:.3g} GB)",
            remedy="name nodes that have it: `celora k8s-job --node-selector LABEL=VALUE`",
        )

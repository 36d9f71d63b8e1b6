"""A stage from claim to end in this process: a real database, a store, and a scripted trainer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_worker import trackers
from gpu_worker.devices import Device
from gpu_worker.gpu_session import GpuSession
from gpu_worker.lease import now
from gpu_worker.supervise import run_stage
from models import store
from models.queries import history, jobs, products
from models.queries.gpus import list_gpus
from models.queries.placement import Placement
from models.session import transaction
from models.states import Stage, StopReason
from models.tables import Checkpoint
from tests import records
from tests.environment import variables
from tests.waiting import until

QUEUE = "celora.gpu.host.0"


@pytest.fixture
def home(database: str, tmp_path: Path) -> Iterator[Path]:  # noqa: ARG001 (it has to be there)
    with variables(
        CELORA_HOME=str(tmp_path / "home"),
        # A store that is no local folder to us, though it is one: every path of a remote store.
        CELORA_ARTIFACTS=f"local://{tmp_path}/store",
        CELORA_ALLOW_SCRIPTED="true",
        CELORA_CONTROL_SECONDS="0.1",
        CELORA_CANCEL_GRACE_SECONDS="1",
        CELORA_GPU_HEARTBEAT_SECONDS="0.2",
        CELORA_TRAINER_IDLE_SECONDS="1",
    ):
        records.clear()
        yield tmp_path


@pytest.fixture
def worker(home: Path) -> Iterator[Callable[[], GpuSession]]:  # noqa: ARG001 (it has to be there)
    sessions: list[GpuSession] = []

    def start() -> GpuSession:
        core = min(os.sched_getaffinity(0))
        device = Device(0, "cpu-host-0", "cpu", "cpu (1 thread)", 2**30, (core,))
        session = GpuSession("gpu0@host", device, QUEUE)
        session.start()
        sessions.append(session)
        until(lambda: word() == "free")
        return session

    yield start
    for session in sessions:
        session.release()
        session.leave(in_order=True)
    # Threads of ended leases and recorders may still be in a transaction: let them finish it.
    until(lambda: not any(one.name.startswith(("lease", "recorder")) for one in threads()))


def threads() -> list[threading.Thread]:
    return threading.enumerate()


def word() -> str:
    with transaction() as session:
        gpus = list_gpus(session)
    return gpus[0].state if gpus else "none"


def placed(script: str, **fields: Any) -> Placement:
    records.queued(base_model=f"scripted:?step_seconds=0&{script}", **fields)
    return placed_again()


def placed_again() -> Placement:
    """Place the one job that waits; its device may just be writing its heartbeat."""
    placements: list[Placement] = []

    def place() -> bool:
        placements.extend(records.place())
        return bool(placements)

    until(place)
    return placements[0]


def standing(job_id: str) -> list[Checkpoint]:
    with transaction() as session:
        return products.checkpoints_of(session, job_id)


def test_what_a_job_makes_goes_to_a_remote_store(
    home: Path, worker: Callable[[], GpuSession]
) -> None:
    session = worker()
    job = placed("steps=9&checkpoint_every=2", keep_checkpoints=2)
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    done = records.job(job.job_id)
    assert done.state == "completed"
    assert done.adapter_url is not None
    assert done.adapter_url.startswith("local://")
    assert store.read(done.adapter_url, "adapter_config.json") == b'{"steps": 9}'
    assert done.result is not None
    assert done.result["steps"] == 9
    assert done.result["evaluation"]["tuned"]["rows"] == 1
    assert [one.step for one in standing(job.job_id)] == [8, 6]
    folders = (home / "store").glob("jobs/*/*/checkpoints/step-*")
    assert sorted(folder.name for folder in folders) == ["step-6", "step-8"]
    work = store.work_folder(job.job_id, job.fence)
    until(lambda: not work.exists())


def test_a_job_resumes_where_another_machines_trainer_died(
    home: Path, worker: Callable[[], GpuSession]
) -> None:
    session = worker()
    job = placed("steps=8&checkpoint_every=3&exit_at=5&fault_fences=2")
    assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    lost = records.attempt(job.job_id, job.fence)
    assert lost.outcome == "lost"
    assert lost.reason is not None
    assert "signal 9" in lost.reason
    assert [one.step for one in standing(job.job_id)] == [3]
    with variables(CELORA_HOME=str(home / "another home")):
        again = placed_again()
        assert run_stage(session, again.job_id, again.fence, Stage.TRAIN)
    assert records.attempt(job.job_id, again.fence).start_step == 3
    assert records.job(job.job_id).trained_tokens == 800


@pytest.mark.fault(20)
def test_a_killed_save_leaves_nothing_that_counts(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=8&checkpoint_every=2&save_exit_at=4&fault_fences=2")
    assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    torn = store.work_folder(job.job_id, job.fence) / "checkpoints" / "step-4.tmp"
    assert torn.exists()
    assert [one.step for one in standing(job.job_id)] == [2]
    again = placed_again()
    assert run_stage(session, again.job_id, again.fence, Stage.TRAIN)
    assert records.attempt(job.job_id, again.fence).start_step == 2


def test_evaluation_follows_in_another_process_after_a_loss(
    worker: Callable[[], GpuSession],
) -> None:
    session = worker()
    job = placed("steps=3&eval_exit=1&fault_fences=2")
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert not run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    assert records.job(job.job_id).stage == "evaluate"
    again = placed_again()
    assert again.stage is Stage.EVALUATE
    assert run_stage(session, again.job_id, again.fence, Stage.EVALUATE)
    done = records.job(job.job_id)
    assert done.state == "completed"
    assert done.result is not None
    assert done.result["steps"] == 3  # training's result outlived the attempt


def test_the_bases_evaluation_is_made_once(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    cached = []
    for _ in range(2):
        job = placed("steps=1")
        assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
        assert run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
        result = records.job(job.job_id).result
        assert result is not None
        cached.append(result["evaluation"]["base_cached"])
    assert cached == [False, True]


def test_a_jobs_tracker_is_fed(home: Path, worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=3", track=("tensorboard",))
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    assert trackers.wait(20)
    # Below its own folder alone: the work folder is being removed meanwhile.
    runs = home / "home" / "tensorboard"
    assert list(runs.glob(f"*/{job.job_id}/**/events.out.tfevents.*"))


def test_a_stage_runs_once_however_many_tickets_come(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=2")
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert not run_stage(session, job.job_id, job.fence - 1, Stage.EVALUATE)
    assert run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    assert not run_stage(session, job.job_id, job.fence, Stage.EVALUATE)


def test_a_cancel_between_two_stages_ends_the_attempt(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=2")
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    with transaction() as database:
        jobs.request_stop(database, job.job_id, StopReason.CANCEL)
    until(lambda: records.job(job.job_id).state == "cancelled")
    assert not run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    until(lambda: word() == "free")


def test_a_drain_between_two_stages_puts_the_job_back(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=2")
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    session.drain()
    until(lambda: records.job(job.job_id).state == "queued")
    assert records.attempt(job.job_id, job.fence).outcome == "drained"
    assert not run_stage(session, job.job_id, job.fence, Stage.EVALUATE)


def test_a_trainer_that_never_becomes_ready_is_killed(
    worker: Callable[[], GpuSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python imports it before anything of ours: however slow the machine, no word ever comes.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if 'CELORA_MESSAGE_FD' in os.environ:\n"
        f"    open(f'{tmp_path}/{{os.getpid()}}.pid', 'w').close()\n"
        "    signal.pause()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with variables(CELORA_TRAINER_START_SECONDS="0.5"):
        session = worker()
        job = placed("steps=2")
        assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    lost = records.attempt(job.job_id, job.fence)
    assert lost.reason is not None
    assert "not ready" in lost.reason
    assert session.trainer is None
    assert not any(psutil.pid_exists(int(path.stem)) for path in tmp_path.glob("*.pid"))


def test_an_idle_trainer_leaves_after_a_while(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=1", evaluate=False)
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    # Told by its row: on a busy machine the short while is over before one could look.
    pid = records.attempt(job.job_id, job.fence).trainer_pid
    assert pid is not None
    until(lambda: session.trainer is None and not psutil.pid_exists(pid))


def test_an_unanswered_stop_kills_within_its_grace(worker: Callable[[], GpuSession]) -> None:
    session = worker()
    job = placed("steps=5&hang_at=2&children=1")
    began = now()

    def cancel() -> None:
        until(lambda: records.job(job.job_id).step == 1)
        with transaction() as database:
            jobs.request_stop(database, job.job_id, StopReason.CANCEL)

    thread = threading.Thread(target=cancel)
    thread.start()
    assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    thread.join()
    assert now() - began < 5
    assert records.job(job.job_id).state == "cancelled"


def test_without_held_out_rows_the_job_ends_with_its_training(
    worker: Callable[[], GpuSession],
) -> None:
    session = worker()
    job = placed("steps=3&eval_fail=1")
    with transaction() as database:
        prepared = jobs.get_job(database, job.job_id)
        prepared.verdict = (prepared.verdict or {}) | {"rows_eval": 0}
    assert run_stage(session, job.job_id, job.fence, Stage.TRAIN)
    assert run_stage(session, job.job_id, job.fence, Stage.EVALUATE)
    done = records.job(job.job_id)
    assert done.state == "completed"
    assert done.adapter_url is not None
    assert done.result is not None
    assert "evaluation" not in done.result
    with transaction() as database:
        told = [event.kind for event in history.events_of(database, job.job_id)]
    assert told.count("evaluation_skipped") == 1
    until(lambda: word() == "free")


@pytest.mark.torch
def test_weights_from_a_hub_that_is_away_are_asked_for_again(
    worker: Callable[[], GpuSession],
) -> None:
    """Nobody listens at HF_ENDPOINT; the data was prepared when somebody did."""
    with variables(CELORA_FETCH_PATIENCE_SECONDS="0", CELORA_MAX_LOSSES="2"):
        session = worker()
        records.queued(base_model="owner/tiny")
        job = placed_again()
        assert not run_stage(session, job.job_id, job.fence, Stage.TRAIN)
        assert records.job(job.job_id).state == "queued"
        again = placed_again()
        assert not run_stage(session, again.job_id, again.fence, Stage.TRAIN)
    failed = records.job(job.job_id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "unavailable"
    assert "the hub did not answer" in failed.error["message"]

"""Preparation is killed halfway, and data that changes before it is trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from gpu_worker import prepared_data
from models import store
from models.queries import gpus as gpu_rows
from models.queries import jobs
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
from models.tables import Attempt
from tests.faults.conftest import Observe
from tests.scripted_jobs import FAST, gpus, in_state, is_gone, job, start_gpu_worker, tries
from tests.stack import Running, Stack

pytestmark = pytest.mark.broker

LEASE = float(FAST["CELORA_LEASE_SECONDS"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    return stack


@pytest.fixture
def cordoned(pool: Stack) -> Iterator[None]:
    """A slot that takes no job until `uncordon`."""
    running = start_gpu_worker(pool, 1)
    cordon(on=True)
    yield
    pool.stop(running)


def cordon(*, on: bool) -> None:
    (gpu,) = gpus()
    with transaction() as session:
        gpu_rows.set_cordon(session, gpu.host, gpu.index, on=on)


def rows(path: Path, count: int) -> Path:
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(count))
    path.write_text("\n".join(lines))
    return path


def submit(base: Path, data: Path, **fields: Any) -> str:
    spec = JobSpec.model_validate(
        {"base_model": str(base), "dataset": str(data), "max_sequence_length": 64} | fields
    )
    with transaction() as session:
        return jobs.insert_job(session, spec, tenant="default", user="ada").id


def cpu_worker(stack: Stack) -> Running:
    return next(one for one in stack.running if one.name == "cpu-worker")


def preparations(job_id: str) -> list[str | None]:
    with transaction() as session:
        ours = (Attempt.job_id == job_id) & Attempt.gpu_id.is_(None)
        found = select(Attempt.outcome).where(ours).order_by(Attempt.fence)
        return list(session.scalars(found))


@pytest.mark.fault(29)
def test_a_cpu_worker_killed_in_preparation_is_followed_by_another(
    pool: Stack, base: Path, tmp_path: Path, observe: Observe
) -> None:
    data = rows(tmp_path / "rows.jsonl", 30_000)
    job_id = submit(base, data)
    scratch = store.work_folder(job_id, 1) / "prepare"
    killed = cpu_worker(pool)
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children()]

    def halfway() -> bool:
        """Caught with some rows written; it stands still from then on."""
        for process in family:
            process.suspend()
        written = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        if written and job(job_id).prepared_url is None:
            return True
        for process in family:
            process.resume()
        return False

    pool.wait_until("it is halfway", halfway, seconds=60)
    prepared = store.local_path(store.prepared_url("x")).parent
    assert list(prepared.glob("*")) == []
    for process in reversed(family):
        process.kill()
    pool.kill(killed)
    killed_at = time.monotonic()
    assert all(map(is_gone, family))
    pool.start("cpu-worker", "--concurrency", "1")
    pool.wait_until("it is placed again", lambda: job(job_id).fence > 1, seconds=LEASE + 5)
    again = time.monotonic() - killed_at
    assert again < LEASE + 3
    observe("seconds from the kill to the next placement", again)
    in_state(pool, job_id, "queued", seconds=60)
    assert preparations(job_id) == ["lost", "completed"]
    done = job(job_id)
    assert done.prepared_url is not None
    assert done.data_digest is not None
    assert done.verdict is not None
    assert done.verdict["rows_train"] + done.verdict["rows_eval"] == 30_000
    prepared_data.verify(store.local_path(done.prepared_url), done.data_digest)
    observe("rows prepared", 30_000)
    with transaction() as session:  # it has no part in the tests that follow
        jobs.request_stop(session, job_id, StopReason.CANCEL)


@pytest.mark.fault(28)
@pytest.mark.usefixtures("cordoned")
def test_data_that_was_changed_after_its_preparation_is_never_trained_on(
    pool: Stack, base: Path, tmp_path: Path, observe: Observe
) -> None:
    job_id = submit(base, rows(tmp_path / "rows.jsonl", 60))
    in_state(pool, job_id, "queued", seconds=60)
    prepared = job(job_id)
    assert prepared.prepared_url is not None
    file = store.local_path(prepared.prepared_url) / "train.arrow"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1  # a single bit
    file.write_bytes(content)
    cordon(on=False)
    failed = in_state(pool, job_id, "failed", seconds=60)
    assert failed.error is not None
    assert failed.error["code"] == "invalid_data"
    assert "has changed" in failed.error["message"]
    assert failed.error["remedy"]
    assert (failed.step, len(tries(job_id))) == (0, 1)
    observe("steps trained", failed.step)


@pytest.mark.fault(28)
@pytest.mark.usefixtures("cordoned")
@pytest.mark.torch
@pytest.mark.slow
def test_a_data_set_that_changes_while_its_job_waits_changes_nothing_for_it(
    pool: Stack, base: Path, tmp_path: Path, observe: Observe
) -> None:
    data = rows(tmp_path / "rows.jsonl", 50)
    fields: dict[str, Any] = {"max_steps": 2, "batch_size": 2, "evaluate": False}
    first = submit(base, data, **fields)
    prepared = in_state(pool, first, "queued", seconds=60)
    rows(data, 70)
    second = submit(base, data, **fields)
    other = in_state(pool, second, "queued", seconds=60)
    assert prepared.data_digest != other.data_digest
    cordon(on=False)
    for job_id, before, count in ((first, prepared, 50), (second, other, 70)):
        done = in_state(pool, job_id, "completed", seconds=120)
        assert (done.data_digest, done.prepared_url) == (before.data_digest, before.prepared_url)
        assert done.verdict is not None
        assert done.verdict["rows_train"] + done.verdict["rows_eval"] == count
    observe("digests of the two jobs", "differ; each trained on its own")

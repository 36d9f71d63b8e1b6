"""A job's own faults, tickets that come in any order, and what stands beside the jobs goes down."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path

import httpx
import kombu
import psutil
import pytest
from celery import Celery
from sqlalchemy import func, select

from gpu_worker.session import DROPPED_TICKETS
from models.queries import history, jobs
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
from models.tables import Attempt, Counter, Job
from tests.api_server import key_for
from tests.faults.conftest import Observe
from tests.foreign_app import foreign_app
from tests.postgres_server import free_port
from tests.scripted_jobs import (
    at_step,
    gpu_of,
    gpus,
    in_state,
    is_gone,
    job,
    outcomes,
    steps_once,
    submit,
    tries,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def client(broker: str) -> Iterator[Celery]:
    with foreign_app(broker) as client:
        yield client


REPUBLISHED_WITHIN = 60.0  # seconds, as promised; here the waits are compressed


def dropped() -> int:
    with transaction() as session:
        row = session.get(Counter, DROPPED_TICKETS)
        return row.value if row is not None else 0


@pytest.mark.fault(13)
def test_old_and_repeated_tickets_are_dropped_and_counted(
    pool: Stack, client: Celery, observe: Observe
) -> None:
    job_id = submit("steps=200&step_seconds=0.02")
    attempt = at_step(pool, job_id, 5)
    before = dropped()
    queue = gpu_of(attempt).queue
    other = next(gpu.queue for gpu in gpus() if gpu.queue != queue)
    for to in (queue, other):
        for fence in (attempt.fence, attempt.fence - 1, attempt.fence + 7):
            client.send_task("celora.train", [job_id, fence], queue=to)
    client.send_task("celora.evaluate", [job_id, attempt.fence], queue=other)
    client.send_task("celora.train", ["ftjob-none", 1], queue=other)
    pool.wait_until("the idle slot dropped its tickets", lambda: dropped() >= before + 5)
    in_state(pool, job_id, "completed")
    pool.wait_until("all were dropped", lambda: dropped() >= before + 8, seconds=15)
    assert outcomes(job_id) == ["completed"]
    assert tries(job_id)[0].claimed_stages == ["train", "evaluate"]
    steps_once(job_id, 200)
    observe("tickets dropped", dropped() - before)


@pytest.mark.fault(3)
def test_a_purged_queue_is_filled_again(pool: Stack, broker: str, observe: Observe) -> None:
    running = submit("steps=100000&step_seconds=0.03")
    at_step(pool, running, 5)
    pool.stop(next(one for one in pool.running if one.name == "cpu-worker"))
    waiting = [submit("steps=3&step_seconds=0") for _ in range(3)]
    purged = 0

    def purge() -> bool:
        nonlocal purged
        with kombu.Connection(broker) as connection, connection.channel() as channel:
            purged += int(kombu.Queue("celora.cpu", channel=channel).purge() or 0)
        return purged >= len(waiting)

    pool.wait_until("the queue was purged", purge, seconds=20)
    observe("tickets purged", purged)
    began = time.monotonic()
    pool.start("cpu-worker", "--concurrency", "1")
    for job_id in waiting:
        pool.wait_until("prepared", partial(is_prepared, job_id), seconds=REPUBLISHED_WITHIN)
    observe("seconds until all were prepared", time.monotonic() - began)
    for job_id in waiting:
        in_state(pool, job_id, "completed", seconds=60)
        assert outcomes(job_id) == ["completed"]
    untouched(pool, running)


def is_prepared(job_id: str) -> bool:
    return job(job_id).stage != "preprocess"


def untouched(pool: Stack, job_id: str) -> None:
    """It runs, on its first attempt, and gets on. Nobody waits for its end."""
    assert outcomes(job_id) == [None]
    at_step(pool, job_id, job(job_id).step + 1)
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    in_state(pool, job_id, "cancelled", seconds=15)


@pytest.mark.fault(22)
def test_a_failed_stage_stops_the_chain(pool: Stack, observe: Observe) -> None:
    job_id = submit("fail_at=4&step_seconds=0")
    failed = in_state(pool, job_id, "failed")
    assert failed.stage == "train"
    assert failed.error is not None
    assert failed.error["message"] == "the script fails here"
    assert tries(job_id)[0].claimed_stages == ["train"]
    observe("stages claimed after the failure", 0)


@pytest.mark.fault(22)
def test_failed_preparation_never_reaches_a_gpu(
    pool: Stack, tmp_path: Path, observe: Observe
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}')
    with transaction() as session:
        spec = {"base_model": str(tmp_path / "none"), "dataset": str(rows)}
        wanted = JobSpec.model_validate(spec)
        job_id = jobs.insert_job(session, wanted, tenant="default", user="ada").id
    failed = in_state(pool, job_id, "failed")
    assert failed.stage == "preprocess"
    assert failed.error is not None
    assert failed.error["code"] == "invalid_base_model"
    assert tries(job_id) == []
    observe("attempts on a GPU", 0)


@pytest.mark.fault(26)
def test_a_loss_that_is_not_a_number_names_its_step(pool: Stack, observe: Observe) -> None:
    job_id = submit("nan_at=7&step_seconds=0&checkpoint_every=2")
    failed = in_state(pool, job_id, "failed")
    assert failed.error is not None
    assert (failed.error["code"], failed.error["where"]) == ("non_finite_loss", "step 7")
    assert outcomes(job_id) == ["failed"]  # again would end the same way
    observe("error", f"{failed.error['message']}, {failed.error['where']}")


@pytest.mark.fault(27)
def test_out_of_memory_is_retried_with_half_the_micro_batch(pool: Stack, observe: Observe) -> None:
    job_id = submit("steps=6&oom_at=3&oom_above=1&step_seconds=0", batch_size=4)
    in_state(pool, job_id, "completed")
    assert outcomes(job_id) == ["retried", "retried", "completed"]
    assert job(job_id).overrides == {"batch_size": 1, "gradient_accumulation": 16}
    with transaction() as session:
        kinds = [event.kind for event in history.events_of(session, job_id)]
    assert kinds.count("out_of_memory") == 2
    observe("micro-batches", "4, 2, 1")


@pytest.mark.fault(27)
def test_out_of_memory_with_one_row_fails_clearly(pool: Stack, observe: Observe) -> None:
    job_id = submit("oom_at=3&oom_above=0&step_seconds=0", batch_size=2)
    failed = in_state(pool, job_id, "failed")
    assert outcomes(job_id) == ["retried", "failed"]
    assert failed.error is not None
    assert failed.error["code"] == "out_of_memory"
    assert failed.error["remedy"]
    observe("remedy", failed.error["remedy"])


@pytest.mark.fault(24)
def test_a_caller_that_dies_before_its_result_comes_has_its_job_all_the_same(
    pool: Stack, broker: str, observe: Observe
) -> None:
    """The result backend is the caller's own queue here: it is gone when the result is sent."""
    program = (
        "import os, sys\n"
        "from celery import Celery\n"
        "client = Celery(broker=sys.argv[1], backend='rpc://')\n"
        "spec = {'base_model': 'scripted:?steps=3&step_seconds=0', 'dataset': 'none'}\n"
        "client.send_task('celora.submit', [spec], task_id='caller-died')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, broker], check=False)
    assert died.returncode == -9

    def found() -> str | None:
        with transaction() as session:
            return session.scalar(select(Job.id).where(Job.idempotency_key == "caller-died"))

    job_id = pool.wait_until("its job is there", found, seconds=20)
    in_state(pool, job_id, "completed")
    with transaction() as session:
        count = session.scalar(select(func.count()).where(Attempt.job_id == job_id))
    assert count == 2  # preparation, and train with evaluate
    observe("jobs", 1)


@pytest.mark.fault(24)
def test_a_killed_flower_changes_nothing_for_jobs(pool: Stack, observe: Observe) -> None:
    pytest.importorskip("flower")
    flower = pool.start("flower", "--port", str(free_port()))
    pool.wait_until("Flower is up", lambda: "Connected to amqp" in flower.said(), seconds=60)
    job_id = submit("steps=150&step_seconds=0.02")
    at_step(pool, job_id, 5)
    watched = psutil.Process(flower.pid)
    pool.kill(flower)
    assert is_gone(watched)
    began = time.monotonic()
    in_state(pool, job_id, "completed")
    assert outcomes(job_id) == ["completed"]
    steps_once(job_id, 150)
    observe("seconds that the job went on without Flower", time.monotonic() - began)


@pytest.mark.fault(24)
def test_a_killed_api_changes_nothing_for_jobs(pool: Stack, observe: Observe) -> None:
    port = free_port()
    key = key_for("default", user="ada")

    def answer(path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10)

    def up() -> bool:
        try:
            return answer("/v1/fine_tuning/jobs").status_code == HTTPStatus.OK
        except httpx.TransportError:
            return False

    api = pool.start("api", "--port", str(port))
    pool.wait_until("the API is up", up)
    job_id = submit("steps=150&step_seconds=0.02")
    at_step(pool, job_id, 5)
    served = psutil.Process(api.pid)
    pool.kill(api)
    assert is_gone(served)
    with pytest.raises(httpx.ConnectError):
        answer("/v1/fine_tuning/jobs")
    began = time.monotonic()
    in_state(pool, job_id, "completed")
    assert outcomes(job_id) == ["completed"]
    steps_once(job_id, 150)
    observe("seconds that the job went on without the API", time.monotonic() - began)
    # Another one tells how it ended: it kept nothing to itself.
    again = pool.start("api", "--port", str(port))
    pool.wait_until("the next API is up", up)
    assert answer(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "succeeded"
    pool.stop(again)

"""Whoever submits is killed, before its commit and after it: a process, and a worker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from celery import Celery
from sqlalchemy import select

from models.session import transaction
from models.tables import Job
from tests import records
from tests.faults.conftest import Observe
from tests.foreign_app import foreign_app
from tests.stack import Running, Stack

pytestmark = pytest.mark.broker

SPEC = {"base_model": "scripted:?steps=3", "dataset": "none"}
# A table that a submit writes to last: who waits for it has written the job, and not committed.
LOCK = "LOCK TABLE events IN SHARE MODE"


@pytest.fixture
def client(broker: str) -> Iterator[Celery]:
    with foreign_app(broker) as client:
        yield client


@pytest.fixture
def cpu_worker(stack: Stack) -> Iterator[Running]:
    running = stack.start("cpu-worker", "--concurrency", "1")
    stack.wait_until("it is ready", lambda: "ready." in running.said())
    yield running
    if running in stack.running:
        stack.stop(running)


def with_key(key: str) -> list[str]:
    with transaction() as session:
        return list(session.scalars(select(Job.id).where(Job.idempotency_key == key)))


def submit_and(then: str, key: str) -> list[str]:
    program = (
        "import celora, os, sys\n"
        f"job = celora.submit(base_model='scripted:?steps=3', dataset='none',"
        f" idempotency_key={key!r})\n"
        f"{then}\n"
    )
    return [sys.executable, "-c", program]


@pytest.mark.fault(1)
def test_a_submit_killed_before_its_commit_leaves_no_job(stack: Stack, observe: Observe) -> None:
    with records.locked(LOCK):
        submitting = stack.start_program(submit_and("", "before"), "submit")
        records.until_blocked()
        stack.kill(submitting)
        assert submitting.process.returncode == -signal.SIGKILL
    assert with_key("before") == []
    observe("jobs", 0)


@pytest.mark.fault(1)
def test_a_submit_killed_after_its_commit_left_exactly_one(stack: Stack, observe: Observe) -> None:
    """It dies before it could tell anybody, and is tried again with its key."""
    command = submit_and("os.kill(os.getpid(), 9)", "after")
    for _ in range(2):
        died = subprocess.run(command, env=None, check=False)
        assert died.returncode == -signal.SIGKILL
    assert len(with_key("after")) == 1
    assert stack.environment
    observe("jobs", 1)


@pytest.mark.fault(1)
def test_a_worker_killed_before_it_committed_a_submit_makes_exactly_one(
    stack: Stack, cpu_worker: Running, client: Celery, observe: Observe
) -> None:
    with records.locked(LOCK):
        client.send_task("celora.submit", [SPEC], task_id="worker-before", queue="celora.cpu")
        records.until_blocked()
        (child,) = psutil.Process(cpu_worker.pid).children()
        child.kill()
        child.wait(10)
    began = time.monotonic()
    stack.wait_until("its job is there", lambda: with_key("worker-before"), seconds=20)
    observe("seconds from the child's death to the job", time.monotonic() - began)
    assert len(with_key("worker-before")) == 1


@pytest.mark.fault(1)
def test_a_worker_killed_between_commit_and_acknowledgement_makes_no_second(
    stack: Stack, cpu_worker: Running, client: Celery, observe: Observe
) -> None:
    main = psutil.Process(cpu_worker.pid)
    with records.locked(LOCK):
        client.send_task("celora.submit", [SPEC], task_id="worker-after", queue="celora.cpu")
        records.until_blocked()
        main.suspend()  # who acknowledges
    stack.wait_until("it is committed", lambda: with_key("worker-after"), seconds=10)
    stack.kill(cpu_worker)
    again = stack.start("cpu-worker", "--concurrency", "1")
    stack.wait_until(
        "it comes again", lambda: "celora.submit[worker-after] received" in again.said()
    )
    stack.wait_until(
        "it was done again", lambda: "celora.submit[worker-after] succeeded" in again.said()
    )
    assert len(with_key("worker-after")) == 1
    observe("executions", 2)
    observe("jobs", 1)
    stack.stop(again)

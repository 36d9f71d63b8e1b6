"""Jobs on real processes, with one receiver that listens and one that never answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from celery import Celery
from sqlalchemy import text

import celora
from models import secrets
from models.session import transaction
from tests.environment import variables
from tests.receiver import Receiver
from tests.scripted_jobs import FAST, in_state, start_gpu_worker, submit
from tests.stack import Stack

pytestmark = pytest.mark.broker

TOKEN = "T0KEN-in-the-path"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        made.behave("silent", "/dead")
        yield made


@pytest.fixture(scope="module")
def pool(stack: Stack, receiver: Receiver) -> Iterator[Stack]:
    stack.environment |= FAST | {
        "CELORA_SECRET_KEY": secrets.new_key(),
        "CELORA_NOTIFY_PRIVATE_HOSTS": "127.0.0.1",
        "CELORA_NOTIFY_ALLOW_HTTP": "true",
        "CELORA_NOTIFY_ATTEMPTS": "1",
        "CELORA_NOTIFY_TIMEOUT_SECONDS": "600",  # the dead one is waited for to the end
        "CELORA_ROLL_UP_SECONDS": "1",
    }
    with variables(**stack.environment):
        celora.add_target("dead", webhook=receiver.url.replace("/hook", "/dead"))
        celora.add_target(
            "ops",
            webhook=receiver.url.replace("/hook", f"/{TOKEN}"),
            on=["started", "completed", "waiting"],
        )
        stack.start("dispatcher")
        stack.start("cpu-worker", "--concurrency", "1")
        start_gpu_worker(stack, slots=1)
        yield stack


def test_a_receiver_that_never_answers_delays_no_job_and_nobody_else(
    pool: Stack, receiver: Receiver
) -> None:
    jobs = [submit("steps=3&step_seconds=0") for _ in range(4)]
    for job_id in jobs:
        in_state(pool, job_id, "completed", seconds=60)

    def heard() -> list[tuple[str, str]]:
        events = [json.loads(one.body) for one in receiver.at(f"/{TOKEN}")]
        return [(event["data"]["id"], event["type"]) for event in events]

    pool.wait_until("the other target has heard of all", lambda: len(heard()) == 8)
    expected = {(job_id, kind) for job_id in jobs for kind in ("job.started", "job.completed")}
    assert set(heard()) == expected
    assert len(receiver.at("/dead")) == 1  # the first one is still waited for
    assert receiver.open == 1
    assert [one.attempts for one in celora.deliveries(target="dead")] == [0, 0, 0, 1]


@pytest.mark.slow
def test_a_job_that_waits_too_long_is_found(pool: Stack, receiver: Receiver) -> None:
    job_id = submit("steps=1", gpu_model="none of this pool")
    in_state(pool, job_id, "queued")
    with transaction() as session:  # an hour is too long: nearly that
        session.execute(
            text("UPDATE jobs SET queued_at = now() - interval '3598 seconds' WHERE id = :id"),
            {"id": job_id},
        )
    pool.wait_until(
        "it is told",
        lambda: any(b"celora why " + job_id.encode() in one.body for one in receiver.got),
    )


@pytest.mark.slow
def test_the_command_tests_a_target_and_shows_the_log(pool: Stack, receiver: Receiver) -> None:
    assert pool.run("notify", "test", "ops").stdout == "Delivered: 200.\n"
    receiver.behave("error", f"/{TOKEN}")
    failed = pool.run("notify", "test", "ops", check=False)
    assert failed.returncode == 1
    assert failed.stdout.startswith("Not delivered: it answered 500. `celora notify retry ")
    log = json.loads(pool.run("notify", "log", "--target", "ops", "--json").stdout)
    assert (log[0]["notice"], log[0]["state"], log[0]["status"]) == ("test", "failed", 500)
    assert (log[1]["notice"], log[1]["state"], log[1]["status"]) == ("test", "delivered", 200)
    # Anew, by an application that knows only the broker.
    receiver.behave("ok", f"/{TOKEN}")
    with Celery(broker=pool.environment["CELORA_BROKER_URL"], set_as_current=False) as foreign:
        foreign.send_task("celora.notify", args=[log[0]["id"]])
    pool.wait_until(
        "it is delivered",
        lambda: celora.deliveries(target="ops", limit=1)[0].state == "delivered",
    )


def test_no_process_logs_a_secret(pool: Stack) -> None:
    said = "".join(one.said() for one in pool.running)
    assert "dispatching" in said
    assert TOKEN not in said
    assert "whsec_" not in said

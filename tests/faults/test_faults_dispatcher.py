"""The dispatcher is killed or paused where it hurts most, or hears nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial

import kombu
import pytest
from sqlalchemy import text

from models.queries.fence import Exclusive, try_exclusive
from models.queries.history import WAKE_CHANNEL
from models.queries.notify import listen
from models.session import transaction
from models.states import Stage
from tasks.dispatcher import relay
from tests import records
from tests.faults.conftest import Observe
from tests.records import add_gpu, claim, claimed, job, queued, submit
from tests.scripted_jobs import FAST
from tests.stack import Running, Stack

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("_empty")]

QUEUE = "celora.gpu.host.0"
# A table that placing writes to, and that the repairs before it leave alone.
PLACING = "LOCK TABLE events IN SHARE MODE"


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


@pytest.fixture
def dispatchers(stack: Stack) -> Stack:
    """None runs yet; those of a test are gone at its end."""
    stack.environment |= FAST | {"CELORA_GPU_STALE_SECONDS": "60", "CELORA_RESEND_SECONDS": "60"}
    for running in list(stack.running):
        stack.kill(running)
    return stack


def dispatcher(stack: Stack, **extra: str) -> Running:
    running = stack.start("dispatcher", **extra)
    stack.wait_until("it dispatches", lambda: "dispatching" in running.said())
    return running


def was_placed(job_id: str) -> bool:
    return job(job_id).fence == 1


def live(job_id: str) -> int:
    """Attempts of the job that hold a GPU now."""
    with transaction() as session:
        found = session.scalar(
            text(
                "SELECT count(*) FROM attempts"
                " WHERE job_id = :job_id AND ended_at IS NULL AND gpu_id IS NOT NULL"
            ),
            {"job_id": job_id},
        )
    return int(found or 0)


def place_is_taken() -> bool:
    with transaction() as session:
        return not try_exclusive(session, Exclusive.PLACE)


@pytest.mark.fault(2)
def test_a_relay_killed_between_publish_and_mark_publishes_again(
    broker: str, observe: Observe
) -> None:
    add_gpu()
    job_id = queued()
    records.place()
    program = (
        "import os\n"
        "from tasks.dispatcher.relay import Publisher, relay_once\n"
        "publisher = Publisher()\n"
        "def publish(ticket):\n"
        "    publisher(ticket)\n"
        "    if ticket.stage == 'train':\n"
        "        os.kill(os.getpid(), 9)\n"
        "relay_once(publish)\n"
    )
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -signal.SIGKILL
    publisher = relay.Publisher()
    assert relay.relay_once(publisher) == 1  # it was never marked as sent
    publisher.close()
    with kombu.Connection(broker) as connection, connection.channel() as channel:
        queue = kombu.Queue(QUEUE, channel=channel)
        messages = [queue.get(no_ack=True) for _ in range(3)]
    first, second, none = messages
    assert none is None
    assert first.payload[0] == second.payload[0] == [job_id, job(job_id).fence]
    claimed(job_id, Stage.TRAIN)
    assert claim(job_id, Stage.TRAIN) is None
    observe("tickets in the queue", 2)
    observe("claims that found a row", 1)


@pytest.mark.fault(2, 19)
def test_a_dispatcher_killed_inside_its_transaction_placed_nothing(
    dispatchers: Stack, observe: Observe
) -> None:
    add_gpu()
    job_id = queued()
    with records.locked(PLACING):
        first = dispatcher(dispatchers)
        records.until_blocked()  # it has the GPU, the job and the fence, and tells the job's story
        assert place_is_taken()
        dispatchers.kill(first)
        assert first.process.returncode == -signal.SIGKILL
    assert live(job_id) == 0
    fence = job(job_id).fence
    began = time.monotonic()
    dispatcher(dispatchers)
    dispatchers.wait_until("the next one placed it", lambda: live(job_id) == 1, seconds=15)
    observe("seconds until another dispatcher had placed it", time.monotonic() - began)
    assert job(job_id).fence == fence + 1


@pytest.mark.fault(19)
def test_two_dispatchers_one_of_them_paused_inside_its_transaction(
    dispatchers: Stack, observe: Observe
) -> None:
    add_gpu()
    job_id = queued()
    with records.locked(PLACING):
        paused = dispatcher(dispatchers)
        records.until_blocked()
        paused.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert place_is_taken()
    assert live(job_id) == 0
    dispatcher(dispatchers)
    # Postgres ends the transaction of who does not go on; then the other one's turn has come.
    dispatchers.wait_until("the other placed it", lambda: live(job_id) == 1, seconds=15)
    observe("seconds until the other dispatcher had placed it", time.monotonic() - began)
    fence = job(job_id).fence
    paused.process.send_signal(signal.SIGCONT)
    dispatchers.wait_until("its session was ended", lambda: "it is back" in paused.said())
    second = queued()
    add_gpu(1)
    dispatchers.wait_until("both go on placing", lambda: live(second) == 1, seconds=15)
    assert (live(job_id), job(job_id).fence) == (1, fence)
    assert paused.process.poll() is None
    observe("attempts of the job on a GPU", live(job_id))


@pytest.mark.fault(23)
def test_a_lost_notification_is_picked_up_by_the_poll(dispatchers: Stack, observe: Observe) -> None:
    """With the poll as it is by default: every 5 s."""
    dispatcher(dispatchers, CELORA_POLL_SECONDS="5")
    known = submit()
    dispatchers.wait_until("it listens", lambda: job(known).fence == 1, seconds=10)
    took: list[float] = []
    with listen(WAKE_CHANNEL) as wakes:
        # The first may fall into a pass that the known job has caused; the next cannot.
        while max(took, default=0.0) < 1 and len(took) < 3:
            quiet = f"ftjob-quiet{len(took)}"
            with transaction() as session:
                session.execute(text(QUIET), {"id": quiet, "known": known})
            began = time.monotonic()
            dispatchers.wait_until("it was placed", partial(was_placed, quiet), seconds=7)
            took.append(time.monotonic() - began)
        assert not wakes.wait(0)  # nobody was told
    assert 1 < max(took) < 6
    observe("seconds until the job that nobody announced was placed", max(took))


QUIET = """
    INSERT INTO jobs (id, tenant_id, user_name, lane_id, spec, base_model, method, priority)
    SELECT :id, tenant_id, user_name, lane_id, spec, base_model, method, 0
    FROM jobs WHERE id = :known
"""

"""The broker forgets what it had, or gives up on those who are slow: with a RabbitMQ of our own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import kombu
import psutil
import pytest
from amqp.exceptions import PreconditionFailed

from gpu_worker.session import DROPPED_TICKETS
from models.errors import SetupError
from models.queries import jobs
from models.session import transaction
from models.states import StopReason
from models.tables import Counter
from tests.conftest import unavailable
from tests.environment import variables
from tests.faults.conftest import Observe
from tests.foreign_app import foreign_app
from tests.own_rabbitmq import Running, own_server
from tests.scripted_jobs import (
    FAST,
    at_step,
    family,
    gpu_of,
    in_state,
    is_gone,
    job,
    outcomes,
    start_gpu_worker,
    steps_once,
    submit,
    trainer_of,
    tries,
)
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

HEARTBEAT, DELIVERY = 2, 3  # seconds
REPUBLISHED_WITHIN = 60.0  # as promised; here the waits are compressed


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[Running]:
    folder = server_folder / "forgetful-rabbitmq"
    folder.mkdir()
    compressed = (
        f"-rabbit heartbeat {HEARTBEAT} -rabbit consumer_timeout {DELIVERY * 1000}"
        " -rabbit channel_tick_interval 1000"
    )
    try:
        with own_server(folder, compressed) as running:
            yield running
    except SetupError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def broker(server: Running) -> Iterator[str]:
    url = f"{server.url}//"
    with variables(CELORA_BROKER_URL=url):
        yield url


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack, 1)
    return stack


def dropped() -> int:
    with transaction() as session:
        row = session.get(Counter, DROPPED_TICKETS)
        return row.value if row is not None else 0


@pytest.mark.fault(12)
def test_this_broker_gives_up_on_a_delivery_within_seconds(broker: str) -> None:
    """What the next tests stand on."""
    with kombu.Connection(broker) as connection, connection.channel() as channel:
        queue = kombu.Queue("unanswered", channel=channel)
        queue.declare()
        kombu.Producer(channel).publish({}, routing_key="unanswered")
        taken: list[object] = []
        with (
            kombu.Consumer(channel, [queue], callbacks=[lambda _, m: taken.append(m)]),
            pytest.raises(PreconditionFailed, match="delivery acknowledgement"),
        ):
            _drain(connection, seconds=15)
        assert len(taken) == 1


def _drain(connection: kombu.Connection, *, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        connection.heartbeat_check()
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.5)


@pytest.mark.fault(12)
def test_a_job_outlasts_the_delivery_time_out_and_runs_once(
    pool: Stack, broker: str, server: Running, observe: Observe
) -> None:
    """With a second ticket that the busy worker holds unanswered for longer than it may."""
    job_id = submit("steps=120&step_seconds=0.05&checkpoint_every=50")
    attempt = at_step(pool, job_id, 5)
    before = dropped()
    with foreign_app(broker) as client:
        client.send_task("celora.train", [job_id, attempt.fence], queue=gpu_of(attempt).queue)
    in_state(pool, job_id, "completed", seconds=40)
    assert "elivery acknowledgement" in server.log_path.read_text()  # it gave up on somebody
    assert outcomes(job_id) == ["completed"]
    assert tries(job_id)[0].claimed_stages == ["train", "evaluate"]
    steps_once(job_id, 120)
    # The worker still takes tickets.
    following = submit("steps=3&step_seconds=0")
    began = time.monotonic()
    in_state(pool, following, "completed", seconds=30)
    observe("executions", 1)
    observe("seconds until the next job was done", time.monotonic() - began)
    pool.wait_until("the second ticket was dropped", lambda: dropped() > before, seconds=20)


@pytest.mark.slow
@pytest.mark.fault(12)
def test_a_worker_that_misses_its_heartbeats_goes_on_and_its_job_runs_once(
    pool: Stack, server: Running, observe: Observe
) -> None:
    job_id = submit("steps=200&step_seconds=0.05&checkpoint_every=50")
    trainer = trainer_of(at_step(pool, job_id, 5))
    _, main = family(trainer)
    missed = server.log_path.read_text().count("missed heartbeats from client")
    main.suspend()
    pool.wait_until(
        "the broker gave it up",
        lambda: server.log_path.read_text().count("missed heartbeats from client") > missed,
        seconds=20,
    )
    main.resume()
    in_state(pool, job_id, "completed", seconds=60)
    assert outcomes(job_id) == ["completed"]
    steps_once(job_id, 200)
    following = submit("steps=3&step_seconds=0")
    in_state(pool, following, "completed", seconds=30)
    observe("executions", 1)


@pytest.mark.slow
@pytest.mark.fault(3)
def test_a_broker_that_lost_its_data_folder_gets_its_tickets_again(
    pool: Stack, server: Running, observe: Observe
) -> None:
    running = submit("steps=100000&step_seconds=0.05&checkpoint_every=100")
    trainer = trainer_of(at_step(pool, running, 5))
    cpu = next(one for one in pool.running if one.name == "cpu-worker")
    standing_still = [psutil.Process(cpu.pid), *psutil.Process(cpu.pid).children()]
    pool.stop(cpu)
    assert all(map(is_gone, standing_still))
    waiting = submit("steps=3&step_seconds=0")
    pool.wait_until("its ticket is out", lambda: ticket_lies_in(server, "celora.cpu"), seconds=20)
    family_of_broker = server.family()
    server.kill()
    assert all(map(is_gone, family_of_broker))
    assert (outcomes(running), trainer.is_running()) == ([None], True)
    folder = Path(server.environment["RABBITMQ_MNESIA_BASE"])
    assert list(folder.iterdir())
    shutil.rmtree(folder)
    server.start()
    began = time.monotonic()
    pool.start("cpu-worker", "--concurrency", "1")
    in_state(pool, waiting, "queued", seconds=REPUBLISHED_WITHIN)
    observe("seconds until the lost ticket's stage was done", time.monotonic() - began)
    assert (outcomes(running), trainer.is_running()) == ([None], True)
    at_step(pool, running, job(running).step + 1)
    with transaction() as session:
        jobs.request_stop(session, running, StopReason.CANCEL)
    in_state(pool, running, "cancelled", seconds=15)
    in_state(pool, waiting, "completed", seconds=60)  # on the one slot, which is free now
    assert outcomes(waiting) == ["completed"]


def ticket_lies_in(server: Running, queue: str) -> bool:
    with kombu.Connection(f"{server.url}//") as connection, connection.channel() as channel:
        found = kombu.Queue(queue, channel=channel).queue_declare(passive=True)
    return bool(found.message_count)

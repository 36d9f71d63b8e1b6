"""The relay's publisher against a real RabbitMQ, a silent one, and a folder."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import kombu
import pytest

from models.tables import Ticket
from tasks.dispatcher.relay import CONFIRM_SECONDS, Publisher
from tests.environment import variables

QUEUE = "celora.gpu.host.0"


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with closing(Publisher()) as publisher:
        yield publisher


def ticket(stage: str = "train", *, evaluate: bool = True) -> Ticket:
    return Ticket(id=1, job_id="ftjob-a", fence=3, stage=stage, queue=QUEUE, evaluate=evaluate)


def received(url: str, count: int) -> list[kombu.Message]:
    """That many messages, and no more than those."""
    with kombu.Connection(url) as connection, connection.channel() as channel:
        queue = kombu.Queue(QUEUE, channel=channel)
        queue.declare()
        messages = [queue.get(no_ack=True) for _ in range(count + 1)]
    assert messages[-1] is None
    return messages[:-1]


@pytest.mark.broker
def test_a_ticket_is_a_chain_of_train_and_evaluate(broker: str, publisher: Publisher) -> None:
    publisher(ticket())
    (message,) = received(broker, 1)
    arguments, _, embedded = message.payload
    (tail,) = embedded["chain"]
    assert message.headers["task"] == "celora.train"
    assert message.content_type == "application/json"
    assert arguments == ["ftjob-a", 3]
    assert (tail["task"], tail["args"]) == ("celora.evaluate", ["ftjob-a", 3])
    assert tail["options"]["queue"] == QUEUE


@pytest.mark.broker
def test_a_ticket_without_evaluation_or_for_it_alone_has_no_tail(
    broker: str, publisher: Publisher
) -> None:
    publisher(ticket(evaluate=False))
    publisher(ticket("evaluate"))
    tasks = [(one.headers["task"], one.payload[2]["chain"]) for one in received(broker, 2)]
    assert tasks == [("celora.train", None), ("celora.evaluate", None)]


@pytest.mark.broker
def test_every_publish_has_new_task_ids(broker: str, publisher: Publisher) -> None:
    """A worker drops a message whose id was revoked, so a resent ticket must not repeat one."""
    for _ in range(2):
        publisher(ticket())
    messages = received(broker, 2)
    ids = [one.headers["id"] for one in messages]
    ids += [one.payload[2]["chain"][0]["options"]["task_id"] for one in messages]
    assert len(set(ids)) == 4


@pytest.mark.broker
def test_a_connection_that_broke_while_idle_is_replaced(broker: str, publisher: Publisher) -> None:
    publisher(ticket())
    publisher._connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
    publisher(ticket())
    assert len(received(broker, 2)) == 2


def test_a_broker_that_is_not_there_is_an_error_within_seconds(publisher: Publisher) -> None:
    began = time.monotonic()
    nobody = "amqp://guest:guest@127.0.0.1:1//"
    with variables(CELORA_BROKER_URL=nobody), pytest.raises(OSError, match="refused"):
        publisher(ticket())
    assert time.monotonic() - began < 2 * CONFIRM_SECONDS + 2


def test_a_broker_that_never_answers_is_an_error_within_seconds(publisher: Publisher) -> None:
    """Fault 11: the connection is accepted, and then nothing comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        kept: list[socket.socket] = []
        threading.Thread(target=_accept_and_keep, args=(silent, kept), daemon=True).start()
        began = time.monotonic()
        url = f"amqp://guest:guest@127.0.0.1:{port}//"
        with variables(CELORA_BROKER_URL=url), pytest.raises(TimeoutError):
            publisher(ticket())
        assert kept
        assert time.monotonic() - began < 2 * CONFIRM_SECONDS + 2
    for connection in kept:
        connection.close()


def _accept_and_keep(server: socket.socket, kept: list[socket.socket]) -> None:
    try:
        while True:
            kept.append(server.accept()[0])
    except OSError:  # closed: the test is over
        return


def test_a_folder_is_a_broker_too(publisher: Publisher, tmp_path: Path) -> None:
    with variables(CELORA_BROKER_URL=f"filesystem://{tmp_path}/broker"):
        publisher(ticket())
    assert len(list((tmp_path / "broker" / "messages").glob(f"*{QUEUE}*"))) == 1

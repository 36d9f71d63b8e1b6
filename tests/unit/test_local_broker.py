"""The broker's folder is kept clean, and no job from another app is lost by it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from queue import Empty

import pytest
from kombu import Connection, Exchange, Queue
from kombu.transport.filesystem import Transport

from celora.local.broker import UNREAD_SECONDS, prune, prune_at_start
from tasks import folder_transport


def connection(folder: Path) -> Connection:
    # As a new process would begin: else kombu takes the queues of the test before for declared.
    Transport.global_state.clear()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    return Connection(
        "filesystem://",
        transport_options={
            "data_folder_in": str(data),
            "data_folder_out": str(data),
            "control_folder": str(folder / "control"),
        },
    )


def publish(folder: Path, *queues: str) -> None:
    """One message to each queue, the way kombu writes them."""
    with connection(folder) as conn, conn.Producer() as producer:
        for name in queues:
            queue = Queue(name, Exchange("direct-for-tests"), routing_key=name)
            producer.publish({}, routing_key=name, exchange=queue.exchange, declare=[queue])


def waiting(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in folder.rglob("*.msg"))


def grow_old(folder: Path) -> None:
    then = time.time() - UNREAD_SECONDS - 1
    for path in folder.rglob("*.msg"):
        os.utime(path, (then, then))


QUEUES = ("celora.cpu", "celery", "celora.gpu.host.0", "celeryev.abc", "cpu@host.celery.pidbox")


def test_a_message_that_is_just_being_written_is_left_until_it_is_whole(tmp_path: Path) -> None:
    folder_transport.install()
    with connection(tmp_path) as conn, conn.SimpleQueue("orders") as queue:
        queue.put({"n": 1})
        (path,) = (tmp_path / "data").glob("*.orders.msg")
        whole = path.read_bytes()
        for part in (b"", whole[: len(whole) // 2]):
            path.write_bytes(part)
            with pytest.raises(Empty):
                queue.get(block=False)
        path.write_bytes(whole)
        assert queue.get(block=False).payload == {"n": 1}
        assert not list((tmp_path / "data").iterdir())


def test_a_start_drops_tickets_to_gpus_and_keeps_what_others_sent(tmp_path: Path) -> None:
    publish(tmp_path, *QUEUES)
    prune_at_start(tmp_path)
    assert waiting(tmp_path) == ["celery.msg", "celora.cpu.msg"]


def test_while_it_runs_only_queues_that_nobody_reads_go(tmp_path: Path) -> None:
    publish(tmp_path, *QUEUES)
    prune(tmp_path)
    assert len(waiting(tmp_path)) == len(QUEUES)
    grow_old(tmp_path)
    publish(tmp_path, "celeryev.fresh")
    prune(tmp_path)
    assert waiting(tmp_path) == [
        "celery.msg", "celeryev.fresh.msg", "celora.cpu.msg", "celora.gpu.host.0.msg"
    ]  # fmt: skip


def test_a_dead_queue_gets_no_more_copies(tmp_path: Path) -> None:
    events = Exchange("fanout-for-tests", type="fanout")
    with connection(tmp_path) as conn, conn.Producer() as producer:
        for name in ("celeryev.dead", "celeryev.alive"):
            Queue(name, events).bind(conn.default_channel).declare()
        producer.publish({}, exchange=events, routing_key="")
        assert waiting(tmp_path) == ["celeryev.alive.msg", "celeryev.dead.msg"]
        grow_old(tmp_path)
        for path in tmp_path.rglob("*celeryev.alive.msg"):
            path.unlink()  # its reader took it
        prune(tmp_path)
        producer.publish({}, exchange=events, routing_key="")
        assert waiting(tmp_path) == ["celeryev.alive.msg"]


def test_an_empty_or_missing_folder_is_fine(tmp_path: Path) -> None:
    prune_at_start(tmp_path / "nowhere")

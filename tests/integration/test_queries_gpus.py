"""GPUs as their workers report them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from models.errors import NotFoundError
from models.queries import gpus
from models.queries.gpus import GpuView
from models.queries.notify import listen
from models.session import transaction
from models.states import Stage
from tests import records
from tests.records import add_gpu, claimed, place, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def views() -> list[GpuView]:
    with transaction() as session:
        return gpus.list_gpus(session)


def beat(gpu_id: int, worker_session: str = "session-1", reported: str = "idle") -> bool:
    with transaction() as session:
        return gpus.heartbeat(session, gpu_id, worker_session, reported=reported)


def test_registering_again_keeps_the_row_and_changes_the_session() -> None:
    first = add_gpu(worker_session="one")
    assert add_gpu(worker_session="two") == first
    assert not beat(first, "one")
    assert beat(first, "two")


def test_a_card_at_another_index_leaves_its_old_row_without_a_worker() -> None:
    with transaction() as session:
        details: dict[str, Any] = {
            "host": "host",
            "uuid": "GPU-1",
            "kind": "cuda",
            "model": "m",
            "memory_bytes": 1,
            "queue": "q",
            "worker": "w",
            "worker_session": "s",
            "boot_id": "b",
            "versions": {"driver": "1"},
        }
        old = gpus.register_gpu(session, index=0, **details)
        gpus.heartbeat(session, old, "s", reported="idle")
        new = gpus.register_gpu(session, index=1, **details)
        gpus.heartbeat(session, new, "s", reported="idle")
    assert [(one.id, one.state) for one in views()] == [(old, "stale"), (new, "free")]
    assert [one.uuid for one in views()][1] == "GPU-1"
    assert views()[1].versions == {"driver": "1"}


def test_the_word_for_each_state() -> None:
    gpu_id = add_gpu()

    def word() -> str:
        return views()[0].state

    assert word() == "free"
    for reported in ("busy", "held", "unknown"):
        beat(gpu_id, reported=reported)
        assert word() == reported
    beat(gpu_id)
    job_id = queued()
    place()
    assert (word(), views()[0].job_id) == ("placed", job_id)
    claimed(job_id, Stage.TRAIN)
    assert word() == "busy"
    records.clear()
    gpu_id = add_gpu()
    with transaction() as session:
        gpus.set_cordon(session, "host", 0, on=True)
    assert (word(), views()[0].cordoned) == ("cordoned", True)
    with transaction() as session:
        gpus.mark_gone(session, gpu_id, "another session")
    assert word() == "cordoned"
    with transaction() as session:
        gpus.mark_gone(session, gpu_id, "session-1")
    assert word() == "stale"
    beat(gpu_id)
    with transaction() as session:
        session.execute(text("UPDATE gpus SET heartbeat_at = heartbeat_at - interval '40 s'"))
    assert word() == "stale"
    assert views()[0].heartbeat_age_seconds == pytest.approx(40, abs=5)


def test_a_gpu_that_becomes_idle_wakes_the_dispatcher_and_no_other_beat_does() -> None:
    gpu_id = add_gpu()
    with listen("celora_wake") as wakes:
        beat(gpu_id)
        beat(gpu_id, reported="busy")
        assert wakes.wait(0.1) == []
        beat(gpu_id)
        assert wakes.wait(5) == [""]


def test_cordoning_a_gpu_that_is_not_there() -> None:
    with pytest.raises(NotFoundError), transaction() as session:
        gpus.set_cordon(session, "host", 7, on=True)

"""Somebody else uses a GPU's memory."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from models.queries import history
from models.session import transaction
from models.tables import Gpu
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    FAST,
    at_step,
    gpus,
    in_state,
    job,
    outcomes,
    submit,
    trainer_of,
    tries,
    words,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker

FAKE = str(Path(__file__).with_name("nvml"))


@pytest.fixture
def foreign() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


class Card:
    """What the driver says of the card: who holds how much of its memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held_by({})

    def held_by(self, taken: dict[int, int]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(taken))
        new.rename(self.path)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return Card(tmp_path_factory.mktemp("card") / "state.json")


@pytest.fixture(scope="module")
def pool(stack: Stack, card: Card) -> Stack:
    """One worker of a CUDA device whose driver is a stand-in; the trainer is the scripted one."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    driver = {"PYTHONPATH": FAKE, "NVML_STATE": str(card.path)}
    stack.start("gpu-worker", "--devices", "cuda:0", **driver)
    stack.wait_until("the card is free", lambda: words() == ["free"])
    return stack


@pytest.mark.fault(30)
def test_a_card_that_another_process_holds_is_said_to_be_and_gets_no_job(
    pool: Stack, card: Card, foreign: subprocess.Popen[bytes], observe: Observe
) -> None:
    card.held_by({foreign.pid: 40 << 30})
    began = time.monotonic()
    pool.wait_until("the worker says so", lambda: words() == ["held"], seconds=10)
    observe("seconds until the worker said so", time.monotonic() - began)
    (gpu,) = gpus()
    assert gpu.reason is not None
    assert f"pid {foreign.pid}" in gpu.reason
    assert "42.9 GB" in gpu.reason
    observe("said", gpu.reason.replace(str(foreign.pid), "N"))
    job_id = submit("steps=3&step_seconds=0")
    in_state(pool, job_id, "queued")
    # Several passes of the dispatcher and heartbeats later it still waits.
    for _ in range(3):
        before = heartbeat_at()
        pool.wait_until("a heartbeat", partial(heard_since, before))
    assert (job(job_id).state, tries(job_id)) == ("queued", [])
    foreign.kill()
    foreign.wait()
    in_state(pool, job_id, "completed")
    assert outcomes(job_id) == ["completed"]


@pytest.mark.fault(30)
def test_a_placement_on_its_way_to_a_card_that_was_taken_meanwhile_is_withdrawn(
    pool: Stack, card: Card, foreign: subprocess.Popen[bytes], observe: Observe
) -> None:
    """Taken while a job runs: that one goes on, the next does not come."""
    first = submit("steps=100&step_seconds=0.02", evaluate=False)
    trainer = trainer_of(at_step(pool, first, 5))
    second = submit("steps=3&step_seconds=0")
    in_state(pool, second, "queued")
    card.held_by({trainer.pid: 2 << 30, foreign.pid: 40 << 30})
    in_state(pool, first, "completed")
    pool.wait_until("the worker says so", lambda: words() == ["held"], seconds=10)
    pool.wait_until("nobody has the second job", lambda: None not in outcomes(second), seconds=10)
    assert job(second).state == "queued"
    assert set(outcomes(second)) <= {"withdrawn"}
    foreign.kill()
    foreign.wait()
    in_state(pool, second, "completed")
    with transaction() as session:
        kinds = [event.kind for event in history.events_of(session, second)]
    assert "failed" not in kinds
    assert "lost" not in kinds
    observe("how its earlier placements ended", outcomes(second)[:-1])


def heard_since(before: datetime) -> bool:
    return heartbeat_at() > before


def heartbeat_at() -> datetime:
    with transaction() as session:
        return session.scalars(select(Gpu.heartbeat_at)).one()

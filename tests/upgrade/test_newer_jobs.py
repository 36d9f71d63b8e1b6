"""Where jobs go that use what an earlier version does not know, and what they hold up: nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import text

from models.abilities import PREFIX
from models.queries import outbox
from models.session import transaction
from models.states import JobState, Outcome, Stage
from tests import records
from tests.records import add_gpu, claimed, place, place_preparation, queued, state, submit


@pytest.fixture(autouse=True)
def _empty(database: str) -> None:  # noqa: ARG001 (it has to be there)
    records.clear()


def queues() -> Counter[str]:
    with transaction() as session:
        return Counter(ticket.queue for ticket in outbox.unsent(session))


def forget_abilities() -> None:
    """As the workers of an earlier version report themselves."""
    with transaction() as session:
        session.execute(text("UPDATE gpus SET versions = '{}'"))


def test_their_preparation_has_a_queue_and_room_of_its_own() -> None:
    pairs = [submit(method="dpo") for _ in range(3)]
    assert place_preparation(limit=2) == 2
    plain = [submit() for _ in range(3)]
    assert place_preparation(limit=2) == 2
    assert queues() == {"celora.cpu.0.2": 2, "celora.cpu": 2}
    assert place_preparation(limit=2) == 0
    records.end(pairs[0], claimed(pairs[0], Stage.PREPROCESS).fence, Outcome.FAILED)
    assert place_preparation(limit=2) == 1
    assert queues()["celora.cpu.0.2"] == 2
    assert [records.job(one).fence for one in (*pairs, *plain)] == [1, 1, 1, 1, 1, 0]


def test_what_needs_a_later_version_is_left_to_its_dispatcher() -> None:
    later = submit(gpu_labels={f"{PREFIX}99.0": "yes"})
    other = submit()
    assert place_preparation() == 1
    assert (records.job(later).fence, records.job(other).fence) == (0, 1)


def test_a_gpu_of_an_earlier_worker_takes_the_others() -> None:
    add_gpu()
    forget_abilities()
    pairs, other = queued(method="dpo"), queued()
    assert [one.job_id for one in place()] == [other]
    add_gpu(1)
    assert [one.job_id for one in place()] == [pairs]
    assert state(pairs) is JobState.QUEUED

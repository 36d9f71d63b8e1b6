"""Aliases: gates that hold or do not, on evaluations on record; who moved them; the way back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from models.errors import GateError, InputError, NotFoundError, StateError
from models.gates import Gate
from models.queries import adapter_aliases, adapter_gates, adapters, ratings
from models.queries.adapter_aliases import AliasMove
from models.session import transaction
from tests import records
from tests.versions import evaluated, trained

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def version(**details: Any) -> str:
    return evaluated(adapter_name="bot", **details)


def move(number: int | None, *, force: str | None = None, who: str = "ada") -> AliasMove | None:
    with transaction() as session:
        return adapter_aliases.move_alias(
            session, None, "bot", "production", number, who=who, force=force
        )


def back(reason: str | None = None) -> AliasMove:
    with transaction() as session:
        return adapter_aliases.roll_back(
            session, None, "bot", "production", who="grace", reason=reason
        )


def gate(metric: str, against: str = "holder", least: float = 0) -> None:
    with transaction() as session:
        adapter_gates.set_gate(
            session, None, "bot", "production", Gate(metric, against, least), who="ada"
        )


def moves() -> list[tuple[str, int | None, int | None]]:
    with transaction() as session:
        found = adapter_aliases.moves_of(session, None, "bot", "production")
    return [(one.kind, one.from_version, one.to_version) for one in found[::-1]]


def holder() -> str:
    with transaction() as session:
        return adapters.resolve(session, None, "bot@production").reference


def test_a_bad_adapter_is_refused_and_the_alias_stays() -> None:
    version(), version(tuned={"loss": 5.0, "exact_match": 0.0}), version(tuned={"loss": 0.9})
    gate("loss", "base", 0.5)
    gate("loss", "holder")
    gate("exact_match", "holder")
    assert move(1)
    with pytest.raises(GateError) as refused:
        move(2)
    for part in ("stays at version 1", "loss on held-out rows 5 against 4", "exact match 0 "):
        assert part in str(refused.value)
    assert holder() == "bot/1"
    moved = move(3)
    assert moved is not None
    assert [(one["metric"], one["against"], one["holds"]) for one in moved.figures] == [
        ("exact_match", "holder", True),
        ("loss", "base", True),
        ("loss", "holder", True),
    ]
    assert moved.figures[2]["improvement"] == pytest.approx(0.1)
    assert (holder(), moved.moved_by, moved.reason) == ("bot/3", "ada", None)
    assert moves() == [("moved", None, 1), ("moved", 1, 3)]


def test_what_was_not_evaluated_is_refused_where_there_is_a_gate() -> None:
    trained(adapter_name="bot")
    assert move(1)
    assert move(1) is None  # there already, and nothing is recorded
    version()
    gate("loss", "base")
    trained(adapter_name="bot")
    with pytest.raises(GateError, match="bot/3 has not been evaluated"):
        move(3)
    assert len(moves()) == 1


def test_only_the_same_held_out_rows_are_compared() -> None:
    """All have the data digest 1; what was held out is known better of those that say so."""
    version(held_out="rows"), version(held_out="other", tuned={"loss": 0.1})
    version(held_out="rows", tuned={"loss": 0.9}), version(tuned={"loss": 0.1})
    gate("loss")
    assert move(1)
    for number in (2, 4):
        with pytest.raises(GateError, match="different held-out data"):
            move(number)
    assert move(3)


def test_a_forced_move_needs_a_reason_and_is_on_record_as_one() -> None:
    version(), version(tuned={"loss": 5.0})
    gate("loss")
    move(1)
    with pytest.raises(InputError):
        move(2, force=" ")
    forced = move(2, force="the other one answers in French", who="grace")
    assert forced is not None
    assert (forced.kind, forced.moved_by) == ("forced", "grace")
    assert forced.reason == "the other one answers in French"
    assert [one["holds"] for one in forced.figures] == [False]
    better = move(1, force="not needed")
    assert better is not None
    assert better.kind == "moved"  # its gates hold


def test_rollback_goes_back_one_holder_at_a_time() -> None:
    for _ in range(3):
        version()
    for number in (1, 2, 1, 3):
        move(number)
    assert back("3 is rude").reason == "3 is rude"
    assert holder() == "bot/1"
    assert [(back().to_version), holder()] == [2, "bot/2"]
    assert [(back().to_version), holder()] == [1, "bot/1"]
    with pytest.raises(StateError, match="no earlier version"):
        back()
    move(3)
    assert back().to_version == 1
    assert moves()[4] == ("rolled_back", 3, 1)


def test_rollback_passes_over_what_was_deleted_and_asks_no_gate() -> None:
    for loss in (1.0, 0.9, 0.8):
        version(tuned={"loss": loss})
        move(1 if loss == 1.0 else 2 if loss == 0.9 else 3)
    gate("loss")
    with transaction() as session:
        adapters.delete(session, None, "bot/2", "ada")
    assert back().to_version == 1
    with pytest.raises(NotFoundError):
        move(2)


def test_taking_an_alias_away_opens_no_way_around_a_gate() -> None:
    version(), version(tuned={"loss": 2.0})
    gate("loss")
    move(1)
    gone = move(None)
    assert gone is not None
    assert (gone.kind, gone.to_version) == ("removed", None)
    with pytest.raises(GateError, match="stays unset"):
        move(2)
    with pytest.raises(NotFoundError):
        move(None)
    assert back().to_version == 1


def test_two_moves_at_once_take_turns() -> None:
    """Whichever is first, the better one holds the alias in the end."""
    version(), version(tuned={"loss": 0.9}), version(tuned={"loss": 0.8})
    gate("loss")
    move(1)
    together = threading.Barrier(2)

    def race(number: int) -> None:
        together.wait(30)
        with suppress(GateError):
            move(number)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(race, (2, 3)))
    assert holder() == "bot/3"
    assert moves()[-1][2] == 3


def test_a_win_rate_as_a_gate() -> None:
    job_id = version(answers=10)
    gate("win_rate", "base")
    with pytest.raises(GateError, match="nobody has rated bot/1"):
        move(1)
    with transaction() as session:
        for position in range(10):
            ratings.record_rating(
                session, job_id, position, person="ada", preferred="tuned", tuned_left=True
            )
    assert move(1)


def test_gates_are_set_replaced_and_removed() -> None:
    version()
    gate("loss", least=0.5)
    gate("loss", least=0.1)
    gate("bleu", "base", 5)
    with transaction() as session:
        found = adapter_gates.gates_of(session, None, "bot")
        adapter_gates.remove_gate(session, None, "bot", "production", "bleu", against="base")
    assert [(one.metric, one.against, one.least, one.set_by) for one in found] == [
        ("bleu", "base", 5, "ada"),
        ("loss", "holder", 0.1, "ada"),
    ]
    with pytest.raises(NotFoundError), transaction() as session:
        adapter_gates.remove_gate(session, None, "bot", "production", "bleu", against="base")
    for metric, against, least in (
        ("happiness", "base", 0), ("loss", "me", 0), ("loss", "base", -1), ("loss", "base", 1e999),
    ):  # fmt: skip
        with pytest.raises(InputError):
            gate(metric, against, least)

"""Exports and chats from claim to end in this process, with a scripted trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_worker.chat_desk import ChatDesk, ChatOver
from gpu_worker.gpu_session import GpuSession
from gpu_worker.protocol import AnswerPart, Turn
from gpu_worker.supervise import run_stage
from models.queries import products
from models.session import transaction
from models.states import Outcome, Stage
from tests import adapter_work as work
from tests import records
from tests.environment import variables
from tests.integration.test_worker_stage import (  # its fixtures
    home,
    placed,
    placed_again,
    worker,
)
from tests.waiting import until

__all__ = ["home", "worker"]


def trained(session: GpuSession, script: str = "steps=1") -> str:
    one = placed(script, evaluate=False)
    assert run_stage(session, one.job_id, one.fence, Stage.TRAIN)
    return one.job_id


def test_an_export_goes_to_a_remote_store(
    home: Path,
    worker: Callable[[], GpuSession],
) -> None:
    session = worker()
    export = work.export(trained(session), "adapter")
    one = placed_again()
    told = run_stage(session, export, one.fence, Stage.EXPORT)
    assert (bool(told), told.text.partition(",")[0]) == (True, "completed: exported as adapter")
    with transaction() as database:
        (artifact,) = products.artifacts_of(database, export)
    assert artifact.url == f"local://{home}/store/jobs/{export}/1/export"
    assert (home / "store" / "jobs" / export / "1" / "export" / "_whole").exists()


def test_a_chat_answers_and_its_slot_is_free_when_its_user_leaves(
    worker: Callable[[], GpuSession],
) -> None:
    session = worker()
    source = trained(session)
    chat = work.chat(source)
    work.ask(chat, "hello")
    one = placed_again()

    def leave() -> None:
        until(lambda: work.turn(chat).answered_at is not None)
        work.leave(chat)

    user = threading.Thread(target=leave)
    user.start()
    told = run_stage(session, chat, one.fence, Stage.GENERATE)
    user.join()
    assert told.text.startswith("completed: a chat of 1 turns")
    assert work.turn(chat).answer == "tuned says hello"
    assert records.job(chat).result == {
        "chat": {"turns": 1, "tokens": 3, "ended": "closed by its user"}
    }
    assert records.attempt(chat, 1).trainer_warm
    left = work.chat(source)  # nobody waited for its turn
    work.leave(left)
    one = placed_again()
    assert not run_stage(session, left, one.fence, Stage.GENERATE)
    assert records.job(left).state == "cancelled"


@pytest.mark.usefixtures("database")
def test_a_chat_in_which_nothing_is_asked_ends() -> None:
    records.clear()
    taken = records.running(evaluate=False)  # any attempt will do: nothing is trained here
    with transaction() as session:
        products.register_artifact(
            session, taken.job_id, taken.fence, kind="adapter", url="/a", size_bytes=1
        )
    records.end(taken.job_id, taken.fence, Outcome.COMPLETED)
    records.add_gpu()
    chat = work.chat(taken.job_id)
    records.place()
    claim = records.claimed(chat, Stage.GENERATE)
    handed: list[Turn] = []
    over: list[ChatOver] = []

    def stale() -> None:
        raise AssertionError("the fence was not lost")

    desk = ChatDesk(chat, claim.fence, hand_in=handed.append, on_over=over.append, on_stale=stale)
    with variables(CELORA_CHAT_IDLE_SECONDS="0.1", CELORA_CONTROL_SECONDS="0.05"):
        desk.start()
        work.ask(chat, "hello")
        desk.open()  # nothing is handed in before
        until(lambda: bool(handed))
        assert over == []  # an answer is owed
        desk.part(AnswerPart(position=1, text="hel", tokens=1))
        until(lambda: work.turn(chat).answer == "hel")
        desk.part(AnswerPart(position=1, text="lo", tokens=2, whole=True))
        until(lambda: bool(over))
    assert over == [ChatOver("nothing was asked for 0.1 s")]
    work.ask(chat, "too late")
    desk.stop()
    with transaction() as session:
        desk.write_rest(session)
    assert (work.turn(chat).answer, desk.turns, desk.tokens) == ("hello", 1, 2)


@pytest.mark.usefixtures("database")
def test_the_end_of_a_chat_that_was_rolled_back_is_written_again() -> None:
    records.clear()
    taken = records.running(evaluate=False)
    with transaction() as session:
        products.register_artifact(
            session, taken.job_id, taken.fence, kind="adapter", url="/a", size_bytes=1
        )
    records.end(taken.job_id, taken.fence, Outcome.COMPLETED)
    records.add_gpu()
    chat = work.chat(taken.job_id)
    records.place()
    claim = records.claimed(chat, Stage.GENERATE)
    work.ask(chat, "hello")
    desk = ChatDesk(
        chat,
        claim.fence,
        hand_in=lambda _: None,
        on_over=lambda _: None,
        on_stale=lambda: None,
    )
    desk.part(AnswerPart(position=1, text="hi", tokens=1, whole=True))  # not started: none writes
    with transaction() as session:
        desk.write_rest(session)
        session.rollback()
    assert work.turn(chat).answer == ""
    with transaction() as session:
        desk.write_rest(session)
    assert (work.turn(chat).answer, work.turn(chat).answered_at is not None) == ("hi", True)

"""Exports and chats on real workers, and what goes wrong in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celora.conversation import Conversation
from models.errors import StateError
from models.queries import jobs, products
from models.session import transaction
from models.states import StopReason
from tests import adapter_work as work
from tests.environment import variables
from tests.scripted_jobs import FAST, in_state, job, outcomes, start_gpu_worker, submit, words
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.slow]  # the quick run has them in one process

CHATS = {"CELORA_CHAT_LOST_SECONDS": "3"}


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Iterator[Stack]:
    """Dispatcher, CPU worker and one slot; a client is missed after seconds."""
    with variables(**CHATS):
        stack.environment |= FAST | CHATS
        stack.start("dispatcher")
        stack.start("cpu-worker", "--concurrency", "1")
        start_gpu_worker(stack, slots=1)
        yield stack


def trained(stack: Stack, script: str = "") -> str:
    return in_state(stack, submit(f"steps=1&{script}", evaluate=False), "completed").id


def free(stack: Stack) -> None:
    stack.wait_until("the slot is free", lambda: words() == ["free"], seconds=30)


@pytest.mark.fault(5)
def test_an_export_whose_trainer_is_killed_is_made_by_the_next(pool: Stack) -> None:
    export = work.export(trained(pool, "export_exit=1&fault_fences=1"))
    done = in_state(pool, export, "completed")
    assert outcomes(export) == ["lost", "completed"]
    assert done.result is not None
    assert done.result["export"]["format"] == "merged"
    with transaction() as session:
        (artifact,) = products.artifacts_of(session, export)
    assert (artifact.kind, artifact.fence) == ("export", 2)
    assert (Path(artifact.url) / "adapter_model.safetensors").is_file()


def test_an_export_that_differs_fails_with_its_figures_and_leaves_nothing(pool: Stack) -> None:
    export = work.export(trained(pool, "export_differs=1"))
    failed = in_state(pool, export, "failed")
    assert failed.error is not None
    assert failed.error["code"] == "export_differs"
    assert "KL 3 nats" in failed.error["message"]
    with transaction() as session:
        assert products.artifacts_of(session, export) == []


def test_one_question_from_the_command_line(pool: Stack) -> None:
    done = pool.run("chat", trained(pool), "--prompt", "hello")
    assert done.stdout == "tuned says hello\n"
    free(pool)


@pytest.mark.fault(5)
def test_a_chat_whose_trainer_is_killed_says_so_and_ends(pool: Stack) -> None:
    source = trained(pool, "chat_exit_at=2")
    pieces: list[str] = []
    with Conversation.begin(source) as talk:
        assert talk.ask("one", each=pieces.append).text == "tuned says one"
        assert "".join(pieces) == "tuned says one"
        with pytest.raises(StateError, match="the chat is over: the chat was cut off"):
            talk.ask("two", "base")
    assert (job(talk.job.id).state, outcomes(talk.job.id)) == ("failed", ["lost"])
    free(pool)


def test_a_client_that_is_gone_frees_the_slot(pool: Stack) -> None:
    chat = work.chat(trained(pool))  # nobody says that it lives
    work.ask(chat, "hello")
    ended = in_state(pool, chat, "completed")
    assert ended.result is not None
    assert ended.result["chat"]["ended"] == "its client was not heard of for 3 s"
    assert work.turn(chat).answer == "tuned says hello"
    free(pool)


@pytest.mark.parametrize("reason", [StopReason.DRAIN, StopReason.CANCEL])
def test_a_stop_ends_a_chat_and_cuts_its_answer_off(pool: Stack, reason: StopReason) -> None:
    source = trained(pool, "word_seconds=30")
    with Conversation.begin(source) as talk:
        work.ask(talk.job.id, "hello")
        in_state(pool, talk.job.id, "running")
        with transaction() as session:
            jobs.request_stop(session, talk.job.id, reason)
        in_state(pool, talk.job.id, "cancelled")
    free(pool)


def test_leaving_a_chat_ends_it_and_keeps_the_trainer_warm(pool: Stack) -> None:
    source = trained(pool)
    warm = []
    for _ in range(2):
        with Conversation.begin(source) as talk:
            talk.ask("hello")
        in_state(pool, talk.job.id, "completed")
        with transaction() as session:
            (attempt,) = jobs.attempts_of(session, talk.job.id)
        warm.append(attempt.trainer_warm)
    assert warm == [True, True]

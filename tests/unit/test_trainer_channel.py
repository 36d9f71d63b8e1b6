"""The trainer's end of the pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpu_worker.protocol import Activity, Exit, Run, Stop, Turn, parse_message
from gpu_worker.trainer.channel import Channel, StopRequested


def a_run(job_id: str) -> bytes:
    return Run(
        job_id=job_id, fence=1, stage="train", spec={}, batch_size=1, gradient_accumulation=1,
        base_path="", base_name="", base_revision="", prepared_path="", output_path="",
    ).encode()  # fmt: skip


@contextmanager
def channel() -> Iterator[tuple[Channel, int, int]]:
    """A channel, and the descriptors to write commands to and read messages from.

    The command pipe stays open: its end would end this process, as it shall.
    """
    commands, ours = os.pipe()
    theirs, messages = os.pipe()
    yield Channel(os.fdopen(commands, "rb"), messages), ours, theirs
    os.close(theirs)


def read_message(descriptor: int) -> object:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1)
    return parse_message(line)


def test_runs_come_in_order_until_exit() -> None:
    with channel() as (end, commands, _):
        os.write(commands, a_run("a") + a_run("b") + Exit().encode())
        assert [run.job_id for run in end.commands()] == ["a", "b"]


def test_a_stop_reaches_the_run_in_hand_and_no_other() -> None:
    with channel() as (end, commands, _):
        # The second run's stop is in the pipe before the first has begun.
        os.write(commands, a_run("a") + a_run("b") + Stop(reason="pause").encode() + a_run("c"))
        os.write(commands, Exit().encode())
        reasons = {run.job_id: end.stop_reason for run in end.commands()}
    assert reasons["a"] is None
    assert reasons["c"] is None


def test_a_stop_in_the_middle_of_a_run_is_seen() -> None:
    with channel() as (end, commands, messages):
        os.write(commands, a_run("a"))
        runs = end.commands()
        next(runs)
        end.raise_if_stopped()
        os.write(commands, Stop(reason="drain").encode() + b'{"type": "unknown"}\n')
        said = read_message(messages)  # the reader has got past the stop
        assert "unknown command" in str(said)
        with pytest.raises(StopRequested) as caught:
            end.raise_if_stopped()
        assert caught.value.reason == "drain"


def test_messages_arrive_in_order_and_a_full_pipe_holds_nobody_up() -> None:
    with channel() as (end, _, messages):
        for number in range(20_000):  # a pipe holds 64 KiB
            end.send(Activity(what="x" * 50, done=number))
        for number in range(20_000):
            if number % 1000 == 0:
                message = read_message(messages)
                assert isinstance(message, Activity)
                assert message.done == number
            else:
                while os.read(messages, 1) != b"\n":
                    pass


def test_a_turn_belongs_to_the_chat_it_was_asked_in_and_a_stop_ends_the_waiting() -> None:
    def asked(position: int) -> bytes:
        return Turn(position=position, subject="tuned", prompt="?").encode()

    with channel() as (ours, write, _):
        os.write(write, a_run("one") + asked(1) + asked(2) + a_run("two") + asked(3))
        runs = ours.commands()
        next(runs)
        assert ours.next_turn().position == 1
        next(runs)  # the second turn of the first chat is never taken up
        assert ours.next_turn().position == 3
        os.write(write, Stop(reason="cancel").encode())
        with pytest.raises(StopRequested):
            ours.next_turn()

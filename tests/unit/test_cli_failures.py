"""A user meets a sentence and an exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from celora.cli import application
from celora.cli.failures import INTERRUPTED, UNEXPECTED, run
from celora.cli.output import duration, size
from models.errors import (
    CeloraError,
    NotFoundError,
    SetupError,
    StateError,
    TrainingError,
    UnavailableError,
)
from models.settings import settings


def raising(error: BaseException) -> Callable[[], Any]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("no such job", remedy="look"), 2),
        (UnavailableError("no answer", remedy="look"), 3),
        (StateError("not now", remedy="look"), 4),
        (SetupError("no wheel", remedy="look"), 5),
        (TrainingError("it failed", remedy="look"), 1),
    ],
)
def test_our_errors_are_told_with_their_remedy(
    error: CeloraError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"error: {error.what}\n  What to do: look\n"


def test_the_unexpected_is_logged_and_its_log_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ZeroDivisionError("oh"))) == UNEXPECTED
    told = capsys.readouterr().err
    assert "Traceback" not in told
    log = settings().at_home("logs", "errors.log")
    assert str(log) in told
    assert "ZeroDivisionError: oh" in Path(log).read_text()


def test_interrupted() -> None:
    assert run(raising(KeyboardInterrupt())) == INTERRUPTED


def test_the_answer_of_a_command_is_its_exit_code() -> None:
    assert run(lambda: 4) == 4
    assert run(lambda: None) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "--nonsense"],
        ["nonsense"],
        ["job"],
        ["submit", "--rank", "many"],
        ["submit", "--method", "x"],
    ],
)
def test_a_mistyped_command_line_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    app = application(arguments)
    assert run(lambda: app(arguments, prog_name="celora", standalone_mode=False)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "--help" in told


def test_every_command_has_help_and_starts_with_a_sentence() -> None:
    group: Any = typer.main.get_command(application([]))
    assert len(group.commands) == 40
    for name, command in group.commands.items():
        first = (command.help or "").splitlines()[0]
        assert first.endswith((".", ":")), name
        for param in command.params:
            assert getattr(param, "help", None) or name == "db", f"{name} {param.name}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (11_520, "3 h 12 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (2000, "2.0 kB"), (80e9, "80.0 GB"), (5e12, "5.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text

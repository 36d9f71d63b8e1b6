"""The `celora` command, called as the console script does, in the process of the tests; and what
deliveries of notifications stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from celora.cli import application
from celora.cli.failures import run
from models import secrets
from tasks.dispatcher import deliver
from tests.delivering import SETTINGS
from tests.environment import variables
from tests.receiver import Receiver


@pytest.fixture
def celora(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: (exit code, output, errors)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        app = application(list(arguments))
        code = run(lambda: app(list(arguments), prog_name="celora", standalone_mode=False))
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


@pytest.fixture(scope="module")
def notifying(database: str) -> Iterator[None]:  # noqa: ARG001 (after the database)
    """A module's settings for notifications: all pauses are short, time-outs long."""
    with (
        variables(CELORA_SECRET_KEY=secrets.new_key(), **SETTINGS),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(deliver, "LOOK_SECONDS", 0.02)  # as the pauses between tries
        yield


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made

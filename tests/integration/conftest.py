"""The `celora` command, called as the console script does, in the process of the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celora.cli import application
from celora.cli.failures import run


@pytest.fixture
def celora(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: (exit code, output, errors)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        app = application(list(arguments))
        code = run(lambda: app(list(arguments), prog_name="celora", standalone_mode=False))
        told = capsys.readouterr()
        return code, told.out, told.err

    return command

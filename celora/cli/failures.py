"""What a user sees when a command fails: a sentence and a remedy, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from models.errors import CeloraError

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130


def run(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; errors are told on standard error."""
    try:
        answer = command()
    except CeloraError as error:
        say_error(str(error))
        return error.exit_code
    except typer.TyperException as error:
        _say_usage(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 (the last line before the user)
        say_error(
            f"something unexpected happened ({type(error).__name__}: {error})\n"
            f"  What to do: the whole story is in {log_traceback()}; please report it"
        )
        return UNEXPECTED
    return answer if isinstance(answer, int) else 0


def _say_usage(error: typer.TyperException) -> None:
    """A mistake in the command line, in typer's own words, which name the option."""
    if not error.format_message():  # no command was named: the help has been printed
        return
    say_error(error.format_message().replace(": Value error, ", ": "))  # pydantic's prefix
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"  What to do: {context.command_path} --help", file=sys.stderr)


def say_error(text: str) -> None:
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    word = "\x1b[1;31merror:\x1b[0m" if red else "error:"
    print(f"{word} {text}", file=sys.stderr)


def log_traceback() -> Path | str:
    """Append the current exception to the log of errors and say where that is."""
    from models.settings import settings

    path = settings().at_home("logs", "errors.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            # Not the arguments: they may hold a secret.
            log.write(f"--- {datetime.now(UTC).isoformat()} celora {' '.join(sys.argv[1:2])}\n")
            log.write(traceback.format_exc())
    except OSError:
        traceback.print_exc()
        return "the lines above"
    return path

"""`celora rate`: blind, on random sides, each pair once a person, kept at once."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import text

from celora.report.facts import read_runs
from celora.report.page import html
from models.errors import InputError, StateError
from models.queries import ratings
from models.session import transaction
from tests import records
from tests.versions import answer, evaluated, trained

pytestmark = pytest.mark.usefixtures("database", "_empty")

Celora = Callable[..., tuple[int, str, str]]
_ASKED = "[q]uit? "


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


@pytest.fixture
def rate(celora: Celora, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Rate with these lines on standard input; what was printed."""

    def rate(job_id: str, keys: str, *options: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
        code, out, err = celora("rate", job_id, "--user", "ada", *options)
        assert (code, err) == (0, "")
        return out

    return rate


def stored(person: str = "ada") -> dict[int, tuple[str, bool]]:
    """Position → who was preferred, and whether the tuned answer stood on the left."""
    with transaction() as session:
        rows = session.execute(
            text("SELECT position, preferred, tuned_left FROM ratings WHERE person = :person"),
            {"person": person},
        )
        return {position: (preferred, left) for position, preferred, left in rows}


def test_sides_are_random_and_what_is_kept_is_whose_answer_it_was(
    rate: Callable[..., str],
) -> None:
    job_id = evaluated(answers=24)
    out = rate(job_id, "l" * 24)
    found = stored()
    assert sorted(found) == list(range(24))
    assert {left for _, left in found.values()} == {True, False}
    for position, (preferred, tuned_left) in found.items():
        assert preferred == ("tuned" if tuned_left else "base")
        first, second = ("tuned", "base") if tuned_left else ("base", "tuned")
        line = rf"{answer(first, position)} +{answer(second, position)} *\n"
        assert re.search(line, out), position
    asked, _, told = out.partition("ada has rated all 24 pairs")
    assert not re.search("base|tuned|right [0-9]", asked)  # blind, and the right answer unseen
    assert "24 ratings by 1" in told
    order = [int(number) for number in re.findall(r"question (\d+)", out)]
    assert order != sorted(order)


def test_nobody_is_asked_twice_and_what_was_said_is_kept_at_once(
    rate: Callable[..., str],
) -> None:
    job_id = evaluated(answers=5)
    assert f"3 left; `celora rate {job_id}` goes on." in rate(job_id, "tlq")
    first = stored()
    assert len(first) == 2
    assert "2 left" in rate(job_id, "x s")  # the file ends: as quit; what is no key is asked again
    assert rate(job_id, "rr").count(_ASKED) == 2
    assert rate(job_id, "").count(_ASKED) == 0
    found = stored()
    assert {position: found[position] for position in first} == first
    assert sorted(preferred for preferred, _ in found.values()).count("skip") == 1
    assert rate(job_id, "t", "--skipped", "--expected").count(_ASKED) == 1
    assert [preferred for preferred, _ in stored().values()].count("tie") == 2
    assert rate(job_id, "", "--skipped").count(_ASKED) == 0
    with transaction() as session:
        again = ratings.record_rating(
            session, job_id, 0, person="ada", preferred="base", tuned_left=True
        )
        assert not again


def test_people_are_counted_and_it_is_told_everywhere(
    rate: Callable[..., str], celora: Celora
) -> None:
    job_id = evaluated(answers=3, adapter_name="bot")
    rate(job_id, "tss")
    with transaction() as session:
        for position in (0, 1):
            ratings.record_rating(
                session, job_id, position, person="grace", preferred="tuned", tuned_left=False
            )
    tally = json.loads(celora("rate", job_id, "--json")[1])
    assert (tally["ratings"], tally["tuned"], tally["ties"], tally["people"]) == (3, 2, 1, 2)
    assert tally["win_rate"] == pytest.approx(2.5 / 3)
    record = json.loads(celora("job", job_id, "--json")[1])
    assert record["win_rate"] == {name: tally[name] for name in record["win_rate"]}
    assert record["adapters"] == ["bot/1"]
    with transaction() as session:
        row = session.execute(text("SELECT * FROM admin.evaluations")).mappings().one()
    assert row["ratings"] == 3
    assert row["win_rate"] == pytest.approx(tally["win_rate"])
    assert row["win_rate_low"] == pytest.approx(tally["low"])
    assert row["win_rate_high"] == pytest.approx(tally["high"])
    for shown in (celora("job", job_id)[1], html(read_runs([job_id]))):
        assert "win rate" in shown
        assert "83%" in shown
        assert "3 ratings by 2" in shown


def test_the_same_answer_twice_is_a_tie(rate: Callable[..., str]) -> None:
    job_id = evaluated(answers=2)
    with transaction() as session:
        session.execute(text("UPDATE samples SET tuned_answer = base_answer WHERE position = 1"))
    out = rate(job_id, "l")
    assert "The same answer" in out
    assert stored()[1][0] == "tie"


def test_what_a_model_wrote_moves_no_cursor(rate: Callable[..., str]) -> None:
    job_id = evaluated(answers=1)
    with transaction() as session:
        session.execute(text(r"UPDATE samples SET tuned_answer = E'\x1b[2J[b]bold[/b]'"))
    out = rate(job_id, "l")
    assert "\x1b" not in out
    assert "[2J[b]bold[/b]" in out


def test_what_cannot_be_rated_is_explained(celora: Celora) -> None:
    assert celora("rate", evaluated(answers=1), "--user", "x" * 101)[0] == InputError.exit_code
    for job_id in (trained(), records.running().job_id):
        code, _, err = celora("rate", job_id)
        assert code == StateError.exit_code
        assert "no answers to rate" in err
    with pytest.raises(InputError), transaction() as session:
        ratings.record_rating(session, "j", 0, person="ada", preferred="both", tuned_left=True)


class Terminal:
    """A command in a terminal of its own, which is told by Ctrl-C as a shell's is."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "celora", *arguments]
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "90"}
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            # Whoever runs tests in the background of a shell has them ignore Ctrl-C, and children.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(Path(__file__).parents[2])
            os.execve(command[0], command, environment)  # noqa: S606 (no shell is wanted)

    def until(self, words: str) -> str:
        """What is shown up to these words."""
        shown, deadline = "", time.monotonic() + 60
        while words not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([self._screen], [], [], 1)[0]:
                shown += os.read(self._screen, 65_536).decode()
        return shown

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def end(self) -> int:
        """Its exit code, once it has gone."""
        with suppress(OSError):  # what Linux says at the end of a terminal
            while select.select([self._screen], [], [], 60)[0]:
                if not os.read(self._screen, 65_536):
                    break
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._screen)


def test_keys_in_a_terminal() -> None:
    """Arrows and letters without a newline; Ctrl-C keeps what was said."""
    job_id = evaluated(answers=4)
    with Terminal("rate", job_id, "--user", "ada") as terminal:
        for _ in range(2):  # always for the tuned model, wherever it stands
            shown = terminal.until(_ASKED)
            terminal.press("\x1b[D" if shown.index("blue") < shown.index("green") else "\x1b[C")
        terminal.until(_ASKED)
        terminal.press("z")  # no such key: asked again
        terminal.until(_ASKED)
        terminal.press("\x03")
        assert terminal.end() == 130
    assert [preferred for preferred, _ in stored().values()] == ["tuned", "tuned"]
    with Terminal("rate", job_id, "--user", "ada") as terminal:
        assert "3 of 4" in terminal.until(_ASKED)
        terminal.press("tq")  # faster than it asks
        terminal.until("1 left")
        assert terminal.end() == 0
    assert len(stored()) == 3

"""`celora rate`: which of two answers is better, asked blind."""

from __future__ import annotations

import os
import random
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from celora.cli.output import AsJson, JobId, console, facts, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from models.tables import Sample

# What a key, or the first letter of a line, means.
_KEYS = {
    "\x1b[D": "left",
    "\x1bOD": "left",
    "l": "left",
    "\x1b[C": "right",
    "\x1bOC": "right",
    "r": "right",
    "t": "tie",
    "s": "skip",
    "q": "quit",
    "\x04": "quit",
    "": "quit",  # the end of a file, or of the terminal
}
_ESCAPE = b"\x1b"
_ARROW_BYTES = 3
_ASKED = "better: [l]eft, [r]ight, [t]ie, [s]kip, [q]uit? "


def rate(
    job: JobId,
    *,
    user: Annotated[
        str | None, typer.Option(help="Who rates; you, by your login.", show_default=False)
    ] = None,
    expected: Annotated[
        bool, typer.Option("--expected", help="Show the expected answer as well.")
    ] = False,
    skipped: Annotated[
        bool, typer.Option("--skipped", help="Ask about what you skipped before as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say which answer to held-out prompts is better: the base's or the tuned model's, blind.

    Each pair comes on random sides, in random order, and once. Answers are kept at once: quit when
    you like, and go on later. Keys: ← or l, → or r, t for a tie, s to skip, q to quit. --json asks
    nothing and prints the tally.
    """
    from celora.client import current_user, get
    from celora.registry import win_rate
    from models.queries.ratings import record_rating, unrated
    from models.session import transaction

    job_id, person = get(job).id, user or current_user()
    if as_json:
        print_json({"job": job_id} | win_rate(job_id).as_json())
        return
    with transaction() as session:
        left, total = unrated(session, job_id, person, skipped=skipped)
    shuffle = random.SystemRandom()
    shuffle.shuffle(left)
    to = console()
    with _keys() as read:
        for place, pair in enumerate(left, start=total - len(left) + 1):
            to.print(f"\n[b]{place} of {total}[/b]")
            tuned_left = shuffle.choice([True, False])
            preferred = _preferred(to, pair, read, tuned_left=tuned_left, expected=expected)
            if preferred is None:
                print(f"\n{total - place + 1} left; `celora rate {job_id}` goes on.")
                return
            with transaction() as session:
                record_rating(
                    session,
                    job_id,
                    pair.position,
                    person=person,
                    preferred=preferred,
                    tuned_left=tuned_left,
                )
    print(f"\n{person} has rated all {total} pairs. The tuned model's win rate over its base:")
    print(win_rate(job_id))


def _preferred(
    to: Console, pair: Sample, read: Callable[[], str], *, tuned_left: bool, expected: bool
) -> str | None:
    """Show one pair and ask: tuned, base, tie or skip; none: quit."""
    base, tuned = _plain(pair.base_answer), _plain(pair.tuned_answer)
    shown = [("prompt", _plain(pair.prompt))]
    to.print(facts([*shown, ("expected", _plain(pair.expected))] if expected else shown))
    to.print()
    if base == tuned:
        to.print(facts([("both", tuned)]))
        print("The same answer: a tie.")
        return "tie"
    left, right = ("tuned", "base") if tuned_left else ("base", "tuned")
    to.print(table(["left", "right"], [(tuned, base) if tuned_left else (base, tuned)]))
    side = _asked(read)
    return {"left": left, "right": right, "quit": None}.get(side, side)


def _asked(read: Callable[[], str]) -> str:
    """left, right, tie, skip or quit: asked until it is one of these."""
    while True:
        print(_ASKED, end="", flush=True)
        key = read()
        meant = _KEYS.get(key) or _KEYS.get(key[:1].lower())
        print(meant or "?")
        if meant is not None:
            return meant


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """How to read a key: of a terminal at once and without echo, of anything else a line."""
    if not sys.stdin.isatty():
        yield lambda: sys.stdin.readline().replace("\n", " ")  # "": the end, and no empty line
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSADRAIN)  # for the whole session: a key typed early counts
    try:
        yield lambda: _key(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _key(terminal: int) -> str:
    """An arrow is three bytes, which come together; a lone escape is only itself."""
    key = os.read(terminal, 1)
    while (
        key[:1] == _ESCAPE and len(key) < _ARROW_BYTES and select.select([terminal], [], [], 0.1)[0]
    ):
        key += os.read(terminal, 1)
    return key.decode(errors="replace")


def _plain(text: str | None) -> str:
    """What models write may hold control characters, which a terminal would obey."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in (text or "").strip()
    )

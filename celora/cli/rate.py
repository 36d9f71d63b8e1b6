"""`celora rate`: which of two answers is better, asked blind."""

from __future__ import annotations

import random
import sys
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
}
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
    from models.queries.ratings import unrated
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
    for place, pair in enumerate(left, start=total - len(left) + 1):
        to.print(f"\n[b]{place} of {total}[/b]")
        if not _rate_one(to, pair, person, tuned_left=shuffle.random() < 0.5, expected=expected):  # noqa: PLR2004 (a coin)
            print(f"\n{total - place + 1} are left; `celora rate {job_id}` goes on.")
            return
    print(f"\n{person} has rated all {total} pairs. The tuned model's win rate over its base:")
    print(win_rate(job_id))


def _rate_one(to: Console, pair: Sample, person: str, *, tuned_left: bool, expected: bool) -> bool:
    """Show one pair, ask, and keep the answer; False: quit."""
    base, tuned = _plain(pair.base_answer), _plain(pair.tuned_answer)
    shown = [("prompt", _plain(pair.prompt))]
    to.print(facts([*shown, ("expected", _plain(pair.expected))] if expected else shown))
    to.print()
    if base == tuned:
        to.print(facts([("both", tuned)]))
        print("The same answer: a tie.")
        preferred = "tie"
    else:
        to.print(table(["left", "right"], [(tuned, base) if tuned_left else (base, tuned)]))
        side = _asked()
        if side == "quit":
            return False
        preferred = {
            "left": "tuned" if tuned_left else "base",
            "right": "base" if tuned_left else "tuned",
        }.get(side, side)
    from models.queries.ratings import record_rating
    from models.session import transaction

    with transaction() as session:
        record_rating(
            session,
            pair.job_id,
            pair.position,
            person=person,
            preferred=preferred,
            tuned_left=tuned_left,
        )
    return True


def _asked() -> str:
    """left, right, tie, skip or quit: asked until it is one of these."""
    while True:
        print(_ASKED, end="", flush=True)
        key = _key()
        meant = _KEYS.get(key) or _KEYS.get(key[:1].lower())
        print(meant or "?")
        if meant is not None:
            return meant


def _key() -> str:
    """A key, or where no terminal is, a line; at the end of either, the key to quit."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else "q"
    try:
        return str(typer.getchar())
    except EOFError:
        return "q"


def _plain(text: str | None) -> str:
    """What models write may hold control characters, which a terminal would obey."""
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in (text or "").strip()
    )

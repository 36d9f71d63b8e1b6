"""How a row becomes text, and which characters of it are learnt."""

from __future__ import annotations

from dataclasses import dataclass

from training_data.formats.rows import Plain

INSTRUCTION_LAYOUT = "### Instruction / ### Input / ### Response"


@dataclass(slots=True)
class Rendered:
    """A row as text. Spans are (start, end) in characters, in order and apart from each other."""

    text: str
    spans: tuple[tuple[int, int], ...]
    # The last answer without the marks that end a turn: what an evaluation compares with.
    answer: tuple[int, int]
    # A chat template writes the beginning of the sequence itself; plain text leaves it to us.
    whole: bool = False
    # The text ends with the end of the sequence already.
    closed: bool = False


def instruction_prompt(instruction: str, given: str, system: str = "") -> str:
    """The layout of Stanford Alpaca, up to the answer; the input part only where there is one.

    Alpaca's opening sentence is left out: it costs tokens in every row and says nothing about
    the task. Who wants one puts it into a `system` column.
    """
    opening = f"{system}\n\n" if system.strip() else ""
    middle = f"### Input:\n{given}\n\n" if given.strip() else ""
    return f"{opening}### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def render_plain(row: Plain) -> Rendered:
    text = row.prompt + row.answer
    span = (len(row.prompt), len(text))
    return Rendered(text, (span,), span)

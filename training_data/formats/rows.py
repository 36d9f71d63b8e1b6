"""A row after its shape is known: a prompt with its answer, a conversation, or a pair of either."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import xxhash

from training_data.problems import RowError


# Not frozen: a frozen instance takes three times as long to make, and there is one per row.
@dataclass(slots=True)
class Plain:
    """Text up to the answer, and the answer. A `text` row is all answer."""

    prompt: str
    answer: str

    def fingerprint(self) -> int:
        """128 bits over what the row says, the same whatever model or settings it is used with."""
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        return xxhash.xxh3_128_intdigest(
            _encoded(f"{len(self.prompt)}\0{self.prompt}{self.answer}")
        )


@dataclass(slots=True)
class Chat:
    """Messages as a chat template takes them; `learn` says of each whether it carries loss."""

    messages: list[dict[str, Any]]
    learn: list[bool]
    tools: list[Any] | None = None
    cut_turns: int = field(default=0, compare=False)  # after the last answer, which were left off

    def fingerprint(self) -> int:
        """As Plain.fingerprint. Which messages carry loss is part of what the row says."""
        said = json.dumps([self.messages, self.learn, self.tools], ensure_ascii=False)
        return xxhash.xxh3_128_intdigest(_encoded(said))


@dataclass(slots=True)
class Pair:
    """One prompt with two answers, of which the first is preferred."""

    chosen: Plain | Chat
    rejected: Plain | Chat

    def fingerprint(self) -> int:
        """As Plain.fingerprint."""
        sides = f"{self.chosen.fingerprint():x} {self.rejected.fingerprint():x}"
        return xxhash.xxh3_128_intdigest(sides.encode())


Row = Plain | Chat | Pair


def _encoded(text: str) -> bytes:
    """Raises RowError for half a surrogate pair, which JSON can write and no tokenizer can read."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RowError(
            f"half of a surrogate pair (\\u{code:04x}) in the text",
            "write the character whole, or remove it",
        ) from None

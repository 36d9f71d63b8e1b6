"""Answers that teach little, answers that are labels, and how long everything is."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from training_data.quality.private import find, masked
from training_data.quality.row_text import RowText
from training_data.tally import percentiles

# More different short answers than this are no classes.
MOST_CLASSES = 200
_LONGEST_LABEL = 60
_LONGEST_WORD = 40  # a text without white space that is longer is a sentence in Chinese, or code
_FEWEST_ROWS_A_CLASS = 5  # on average: fewer, and the answers just happen to be short
_MOSTLY = 0.9  # of the answers are among them
_LISTED_CLASSES = 10

_SOMETHING = re.compile(r"\w")
_PLACEHOLDERS = frozenset(
    {"n/a", "na", "none", "null", "nil", "nan", "todo", "tbd", "fixme", "unknown", "undefined"}
    | {"-", "...", "…", "placeholder", "lorem ipsum", "your answer here"}
)


class Answers:
    """Counts while rows come by. Memory stays small: classes are given up when they are many."""

    def __init__(self) -> None:
        self.rows = 0
        self.prompt_lengths: Counter[int] = Counter()
        self.answer_lengths: Counter[int] = Counter()
        self._short = 0
        self._classes: Counter[str] | None = Counter()

    def add(self, text: RowText) -> str | None:
        """Count a row. What is odd about its answer: empty, placeholder, one_word, or None."""
        answer = text.answer
        self.rows += 1
        self.prompt_lengths[len(text.prompt)] += 1
        self.answer_lengths[len(answer)] += 1
        if len(answer) > _LONGEST_LABEL:
            return None if _SOMETHING.search(answer) else "empty"
        word = answer.strip().lower()
        if self._classes is not None:
            self._short += 1
            self._classes[answer.strip()] += 1
            if len(self._classes) > MOST_CLASSES:
                self._classes = None
        if word.rstrip(".") in _PLACEHOLDERS or word in _PLACEHOLDERS:
            return "placeholder"
        if not _SOMETHING.search(word):
            return "empty"
        return "one_word" if len(word) <= _LONGEST_WORD and len(word.split()) == 1 else None

    def characters(self) -> dict[str, dict[str, int]]:
        return {
            "prompt": percentiles(self.prompt_lengths),
            "answer": percentiles(self.answer_lengths),
        }

    def labels(self) -> dict[str, Any] | None:
        """The classes, the most frequent first; None where answers are no labels."""
        classes = self._classes
        if not classes or len(classes) < 2:  # noqa: PLR2004 (one class is no choice)
            return None
        if self._short < _MOSTLY * self.rows or self.rows < _FEWEST_ROWS_A_CLASS * len(classes):
            return None
        counts = classes.most_common()
        shown = (
            counts
            if len(counts) <= _LISTED_CLASSES
            else [*counts[:-1][: _LISTED_CLASSES - 1], counts[-1]]
        )
        return {
            "classes": len(counts),
            "rows": self._short,
            "listed": [{"label": _shown(label), "rows": rows} for label, rows in shown],
        }


def _shown(label: str) -> str:
    return masked(label) if find(label) else label

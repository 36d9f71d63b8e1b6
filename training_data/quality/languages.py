"""The languages and scripts of a sample of rows."""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from training_data.quality.row_text import RowText
from training_data.watch import Watch

_MOST_CHARACTERS = 200  # of prompt and answer: more says nothing new
_FEWEST_LETTERS = 20  # in fewer a language cannot be told
_PROSE = 0.7  # letters and spaces in prose, at least: JSON, code and formulas have fewer
_LOOK_EVERY = 20
_LISTED = 8
_SMALL = 0.005  # a language with less of the sample is as likely a wrong guess
_SCRIPTS = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "FULLWIDTH": "latin"}


class Sample:
    """Rows chosen by a digest of what they say: an even sample, the same one in every run."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: list[tuple[int, str, str]] = []  # a heap, the greatest digest in front

    def add(self, digest: int, text: RowText) -> None:
        if len(self._rows) < self._size:
            heapq.heappush(self._rows, self._entry(digest, text))
        elif -digest > self._rows[0][0]:
            heapq.heapreplace(self._rows, self._entry(digest, text))

    @staticmethod
    def _entry(digest: int, text: RowText) -> tuple[int, str, str]:
        # A prompt's end and an answer's beginning: a layout or a long context stands before.
        return -digest, text.prompt[-_MOST_CHARACTERS:], text.answer[:_MOST_CHARACTERS]

    def looked_at(self, watch: Watch) -> dict[str, Any]:
        languages: Counter[str] = Counter()
        scripts: Counter[str] = Counter()
        too_short = unlike = both = 0
        for number, (_, prompt, answer) in enumerate(sorted(self._rows)):
            if number % _LOOK_EVERY == 0:
                watch.look()
            said, asked = _language(answer), _language(prompt)
            if main := _script(answer or prompt):
                scripts[main] += 1
            if said is None:
                too_short += 1
                continue
            languages[said] += 1
            if asked is not None:
                both += 1
                unlike += asked != said
        return {
            "rows": len(self._rows),
            "too_short": too_short,
            "languages": _shares(languages, len(self._rows) - too_short),
            "other_than_prompt": unlike,
            "with_both": both,
            "scripts": _shares(scripts, len(self._rows)),
        }


def _shares(counts: Counter[str], total: int) -> list[dict[str, Any]]:
    """The frequent ones; what remains is "other"."""
    shown = [(name, n) for name, n in counts.most_common(_LISTED) if n >= _SMALL * total]
    rest = counts.total() - sum(n for _, n in shown)
    return [{"name": name, "rows": n} for name, n in [*shown, *([("other", rest)] if rest else [])]]


def _language(text: str) -> str | None:
    """An ISO 639 code; None for a text that is too short to tell, or is not prose."""
    letters = sum(map(str.isalpha, text))
    if letters < _FEWEST_LETTERS or letters + sum(map(str.isspace, text)) < _PROSE * len(text):
        return None
    import py3langid

    return str(py3langid.classify(text)[0])


def _script(text: str) -> str | None:
    """The script of most of a text's letters; None without letters."""
    found = Counter(_script_of(letter) for letter in text if letter.isalpha())
    return found.most_common(1)[0][0] if found else None


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    """The first word of a letter's Unicode name is its script's: LATIN SMALL LETTER A."""
    first = unicodedata.name(letter, "OTHER").partition(" ")[0].partition("-")[0]
    return _SCRIPTS.get(first, first.lower())

"""Looks at every row that passes, and says at the end what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import xxhash

from training_data.quality.answers import Answers
from training_data.quality.findings import findings
from training_data.quality.languages import Sample
from training_data.quality.places import Places
from training_data.quality.private import PATTERNS, find, suspects
from training_data.quality.row_text import RowText, row_text
from training_data.rows import Kept, Rows
from training_data.watch import Watch

if TYPE_CHECKING:
    from training_data.quality.near import Comparison, Pairs

# The keys of the record; raised by one when one of them changes its meaning.
VERSION = 1
SAMPLE = 2000
LISTED = 10  # places that are named for each thing found
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 17
# What text looks like that was read in the wrong encoding: a replacement character, and UTF-8
# taken for Latin-1 (an opening quotation mark, an e with an accent).
_BROKEN = ("\N{REPLACEMENT CHARACTER}", "â€", "Ã©")


@dataclass(slots=True)
class _Noted:
    """Rows in which something was found, and where the first of them stand."""

    rows: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)

    def add(self, place: dict[str, Any]) -> None:
        self.rows += 1
        if len(self.places) < LISTED:
            self.places.append(place)

    def record(self) -> dict[str, Any]:
        return {"rows": self.rows, "places": self.places}


class Quality:
    """Pass rows through `watched`, then ask for `record`. Its files lie in `scratch`.

    Memory stays flat: what grows with the rows is on disk.
    """

    def __init__(
        self,
        rows: Rows,
        scratch: Path,
        watch: Watch,
        *,
        most_rows: int | None = None,
        sample: int = SAMPLE,
    ) -> None:
        """Looks at the first `most_rows`, at all without; at `sample` of them for languages."""
        self._rows = rows
        self._most_rows = most_rows
        self._passed = self._held_out = 0
        self._watch = watch
        self._folder = scratch / "quality"
        self._places = Places(self._folder, own_data=rows.held_out is not None)
        self._comparison: Comparison | None = None
        self._answers = Answers()
        self._sample = Sample(sample)
        self._odd = {name: _Noted() for name in ("empty", "placeholder", "one_word")}
        self._broken = _Noted()
        self._private = {pattern.kind: _Noted() for pattern in PATTERNS}
        self._times = dict.fromkeys(self._private, 0)
        self._batch: list[tuple[RowText, Kept]] = []
        self._characters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import shutil

        # A full disk has been told already: what could not be written is not wanted any more.
        with suppress(OSError), ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            if self._comparison is not None:
                stack.push(self._comparison)
            stack.push(self._places)

    def watched(self, rows: Iterable[Kept]) -> Iterator[Kept]:
        """The same rows."""
        for kept in rows:
            self._passed += 1
            if self._most_rows is not None and self._passed > self._most_rows:
                yield kept
                continue
            text = row_text(kept.row)
            self._held_out += kept.held_out
            self._places.add(kept)
            if odd := self._answers.add(text):
                self._odd[odd].add(self._places.place(kept))
            self._batch.append((text, kept))
            self._characters += len(text.prompt) + len(text.answer)
            if len(self._batch) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
                self._look()
            yield kept
        self._look()

    def record(self) -> dict[str, Any] | None:
        """JSON types only; nothing that a row says but labels. None where no row was whole."""
        self._look()
        if self._comparison is None:
            return None
        self._watch.turn_to("comparing rows", self._answers.rows)
        found = self._comparison.finish()
        dropped = self._rows.dropped
        record = {
            "version": VERSION,
            "rows": self._answers.rows,
            "of_rows": self._passed,
            "characters": self._answers.characters(),
            "duplicates": {
                "exact": dropped["duplicate"],
                "near": found.near.count,
                "groups": found.groups,
                "largest_group": found.largest_group,
                "same_prompt": found.same_prompt.count,
                "alike": found.alike,
                "compared": found.rows,
                "too_short": found.too_short,
                "left_out": found.left_out,
                "common_share": round(found.common_share, 4),
                "examples": self._examples(found.near),
                "same_prompt_examples": self._examples(found.same_prompt),
            },
            "leakage": {
                "between": "eval_dataset" if self._rows.held_out is not None else "split",
                "held_out": self._held_out,
                "exact": dropped["in_evaluation_data"],
                "same_prompt": found.leaked_prompts.count,
                "near": found.leaked.count,
                "examples": self._examples(found.leaked),
                "same_prompt_examples": self._examples(found.leaked_prompts),
            },
            "answers": {name: noted.record() for name, noted in self._odd.items()},
            "labels": self._answers.labels(),
            "language": self._sample.looked_at(self._watch),
            "broken_text": self._broken.record(),
            "private": [
                {
                    "kind": pattern.kind,
                    "name": pattern.words,
                    "personal": pattern.personal,
                    "count": self._times[pattern.kind],
                    **self._private[pattern.kind].record(),
                }
                for pattern in PATTERNS
                if self._times[pattern.kind]
            ],
        }
        return record | {"findings": findings(record)}

    def _look(self) -> None:
        """At the rows that were collected, all at once."""
        if not self._batch:
            return
        # Not at the top: numpy is no part of what importing this package loads.
        from training_data.quality.near import Comparison, Text
        from training_data.quality.shingles import LONGEST_CHARACTERS, evened

        if self._comparison is None:
            self._comparison = Comparison(self._folder, self._watch)
        self._watch.look()
        texts = []
        for text, kept in self._batch:
            prompt = evened(text.prompt)
            asked = prompt + text.prompt[LONGEST_CHARACTERS:].encode()
            said = prompt + b" " + evened(text.answer) if text.said is None else evened(text.said)
            texts.append(Text(said, asked, kept.held_out))
            self._sample.add(xxhash.xxh3_64_intdigest(said), text)
        self._comparison.add(texts)
        whole = [text.everything for text, _ in self._batch]
        for number in suspects(whole):
            self._note_private(whole[number], self._batch[number][1])
        for everything, (_, kept) in zip(whole, self._batch, strict=True):
            if not everything.isascii() and any(mark in everything for mark in _BROKEN):
                self._broken.add(self._places.place(kept))
        self._batch, self._characters = [], 0

    def _note_private(self, text: str, kept: Kept) -> None:
        kinds = [one.pattern.kind for one in find(text)]
        for kind in dict.fromkeys(kinds):
            self._times[kind] += kinds.count(kind)
            self._private[kind].add(self._places.place(kept))

    def _examples(self, pairs: Pairs) -> list[dict[str, Any]]:
        return [
            {"row": self._places.of(row), "like": self._places.of(other), "alike": round(much, 2)}
            for row, other, much in pairs.listed
        ]

"""From rows to tokens with labels, a batch ahead in a second thread.

Prompt and answer are tokenised together, as a model sees them; which tokens carry loss follows
from where the answer's characters stand.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from models.spec import JobSpec
from training_data.chat_template import ChatTemplate
from training_data.formats.rows import Chat, Pair, Plain
from training_data.problems import Problems, RowError
from training_data.rows import Kept
from training_data.templates import Rendered, render_plain
from training_data.token_spans import Encoded, Span, TokenRange, ruler_for
from training_data.tokenizer import Frozen
from training_data.watch import Watch

# Both bound a batch: many short rows, or few long ones.
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 17
# A text this many times longer than the tokens that are kept is measured before it is tokenised.
_SURELY_LONG = 8


@dataclass(slots=True)
class TokenRow:
    """One row as tokens. `loss` are ranges of token positions, in order.

    Ids are kept as 4-byte integers: as Python's they would take 40 bytes each.
    """

    ids: array[int]
    loss: list[tuple[int, int]]
    held_out: bool
    length: int  # tokens before truncation
    # Held out: what generation starts from, and the same as text with the answer expected.
    prompt_ids: array[int] = field(default_factory=lambda: array("i"))
    prompt: str = ""
    answer: str = ""
    # Of a preference pair: the row is the prompt with the chosen answer, this with the other one.
    rejected: TokenRow | None = None

    @property
    def sides(self) -> tuple[TokenRow, ...]:
        return (self,) if self.rejected is None else (self, self.rejected)


@dataclass(slots=True)
class _Batch:
    rows: list[tuple[Kept, Rendered]] = field(default_factory=list)
    characters: int = 0

    @property
    def full(self) -> bool:
        return len(self.rows) >= _BATCH_ROWS or self.characters >= _BATCH_CHARACTERS


class Tokeniser:
    """Turns rows into tokens. Afterwards `dropped` and `truncated` tell what became of the rest."""

    def __init__(
        self, spec: JobSpec, tokenizer: Frozen, *, problems: Problems, watch: Watch
    ) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._problems = problems
        self._watch = watch
        self._limit = spec.max_sequence_length
        self.pairs = spec.method == "dpo"
        self._ruler = ruler_for(tokenizer)
        self._opening = array("i", tokenizer.opening_ids)
        self._chat: ChatTemplate | None = None
        self.dropped: Counter[str] = Counter()
        self.truncated = 0

    def tokens(self, rows: Iterable[Kept]) -> Iterator[TokenRow]:
        """Token rows in order. A row that cannot be rendered becomes a problem; once there is one
        the job has failed, and the rest is only checked. Raises DataError."""
        ahead: tuple[Future[list[Any]], _Batch] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:
            for batch in self._batches(rows):
                texts = [rendered.text for _, rendered in batch.rows]
                future = thread.submit(self._ruler.encode, texts)
                if ahead is not None:
                    yield from self._finished(*ahead)
                ahead = future, batch
            if ahead is not None:
                yield from self._finished(*ahead)

    def _batches(self, rows: Iterable[Kept]) -> Iterator[_Batch]:
        batch = _Batch()
        for kept in rows:
            try:
                sides = [self._cut(self._render(side)) for side in _sides(kept)]
            except RowError as error:
                self._problems.add(kept.line, error.what, error.remedy, file=kept.file)
            if self._problems.count:
                continue
            # The two sides of a pair stand one after the other, in one batch.
            batch.rows += [(kept, rendered) for rendered in sides]
            batch.characters += sum(len(rendered.text) for rendered in sides)
            if batch.full:
                yield batch
                batch = _Batch()
        if batch.rows and not self._problems.count:
            yield batch

    def _render(self, row: Plain | Chat) -> Rendered:
        if isinstance(row, Plain):
            return render_plain(row)
        if self._chat is None:
            self._chat = ChatTemplate(self._tokenizer, self._spec.base_model)
        return self._chat.render(row, anywhere=self._spec.loss_on == "all")

    def _cut(self, rendered: Rendered) -> Rendered:
        """Without text that lies beyond the limit for certain, however long each token is.

        One row of megabytes would otherwise take hundreds of megabytes as tokens with offsets.
        """
        if len(rendered.text) <= _SURELY_LONG * self._limit:
            return rendered
        most = (self._limit + 16) * self._tokenizer.longest_token
        if len(rendered.text) <= most:
            return rendered
        return Rendered(
            rendered.text[:most],
            tuple((start, min(end, most)) for start, end in rendered.spans if start < most),
            rendered.answer,
            rendered.whole,
            rendered.closed,
        )

    def _finished(self, future: Future[list[Any]], batch: _Batch) -> Iterator[TokenRow]:
        while True:
            self._watch.look()
            try:
                encodings = future.result(timeout=0.2)
            except NotYet:
                continue
            break
        texts = [rendered.text for _, rendered in batch.rows]
        encoded = Encoded(texts, encodings, [array("i", encoding.ids) for encoding in encodings])
        spans = [
            Span(number, start, end)
            for number, (kept, rendered) in enumerate(batch.rows)
            for start, end in _asked(kept, rendered)
        ]
        ranges = iter(self._ruler.ranges(encoded, spans))
        read = [
            self._row(kept, rendered, ids, [next(ranges) for _ in _asked(kept, rendered)])
            for (kept, rendered), ids in zip(batch.rows, encoded.ids, strict=True)
        ]
        sides = 2 if self.pairs else 1
        for first in range(0, len(read), sides):
            row = self._whole(read[first : first + sides])
            if row is not None:
                yield row

    def _whole(self, sides: list[TokenRow | str]) -> TokenRow | None:
        """A row of its sides; None, and counted, where one cannot stay."""
        rows = [side for side in sides if isinstance(side, TokenRow)]
        if len(rows) < len(sides):
            self.dropped[next(side for side in sides if isinstance(side, str))] += 1
            return None
        self.truncated += any(row.length > self._limit for row in rows)
        row = rows[0]
        row.rejected = rows[1] if len(rows) > 1 else None
        return row

    def _row(
        self, kept: Kept, rendered: Rendered, ids: array[int], found: list[TokenRange]
    ) -> TokenRow | str:
        """One row with labels, end and limit, or why it is dropped."""
        shift = 0
        if self._opening and not rendered.whole:
            shift = len(self._opening)
            ids[:0] = self._opening
        answer_token = found.pop()[0] + shift if kept.held_out else 0
        loss = [(first + shift, last + shift) for first, last in found if first < last]
        self._close(ids, loss, rendered)
        length = len(ids)
        reason = self._fit(ids, loss)
        if reason is not None:
            return reason
        row = TokenRow(ids, loss, kept.held_out, length)
        if kept.held_out:
            start, end = rendered.answer
            row.prompt, row.answer = rendered.text[:start], rendered.text[start:end]
            row.prompt_ids = ids[:answer_token]
            if not row.prompt_ids:
                # A generation needs a token to start from. What stands before a text that begins
                # with nothing is the end of another.
                row.prompt_ids.append(self._tokenizer.eos_id)
        return row

    def _close(self, ids: array[int], loss: list[TokenRange], rendered: Rendered) -> None:
        """End an open row, in place."""
        if not rendered.closed and (not ids or ids[-1] != self._tokenizer.eos_id):
            ids.append(self._tokenizer.eos_id)
            if rendered.spans and rendered.spans[-1][1] >= len(rendered.text):
                # The answer's end is part of the answer: a model must learn to stop.
                start = loss.pop()[0] if loss and loss[-1][1] == len(ids) - 1 else len(ids) - 1
                loss.append((start, len(ids)))
        if self._spec.loss_on == "all":
            loss[:] = [(0, len(ids))]

    def _fit(self, ids: array[int], loss: list[tuple[int, int]]) -> str | None:
        """Bring a row to the limit, in place; why it cannot stay, or None."""
        if not loss:
            return "no_answer_to_learn"
        if len(ids) > self._limit:
            if self._spec.over_long == "drop":
                return "over_long"
            del ids[self._limit :]
            loss[:] = [(start, min(end, len(ids))) for start, end in loss if start < len(ids)]
        # Nothing predicts the first token, so a label there alone teaches nothing.
        if not loss or loss[-1][1] <= max(loss[-1][0], 1):
            return "answer_cut_off"
        return None


def _asked(kept: Kept, rendered: Rendered) -> tuple[TokenRange, ...]:
    """The spans whose tokens are asked for: what is learnt, and where a held-out answer begins."""
    if not kept.held_out:
        return rendered.spans
    return (*rendered.spans, (rendered.answer[0], rendered.answer[0]))


def _sides(kept: Kept) -> tuple[Plain | Chat, ...]:
    row = kept.row
    return (row.chosen, row.rejected) if isinstance(row, Pair) else (row,)

"""Conversations as the tokenizer's chat template writes them, with the exact span of each answer.

A template is a program: where an answer begins and ends in its output is found, never guessed,
in the first of three ways that holds exactly:

1. the template marks answers itself with `{% generation %}`;
2. it is rendered a second time with a mark in place of each answer; putting the answers back
   where the marks stand must give the first rendering, to the character;
3. the conversation up to an answer, with the generation prompt, must be the beginning of the
   whole: that is where a model would start to write. The end is found likewise.

When none holds the row is refused. A wrong span would train on the user's words, silently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from models.errors import DataError
from training_data.formats.rows import Chat
from training_data.problems import RowError
from training_data.templates import Rendered
from training_data.tokenizer import Frozen

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Private-use characters: no template acts on them, and a row that has them takes the third way.
_MARK = "\ue0f0{}\ue0f1"
# An answer with one of these is more than its content, which is all that a mark can stand for.
_BESIDE_CONTENT = frozenset({"tool_calls", "reasoning_content", "reasoning", "thinking"})

Span = tuple[int, int]


class ChatTemplate:
    """Renders conversations. Raises DataError when the tokenizer has no chat template."""

    def __init__(self, tokenizer: Frozen, where: str) -> None:
        if tokenizer.template is None:
            raise DataError(
                "the data are conversations, but the base model's tokenizer has no chat template",
                where=where,
                remedy="use the instruct version of this base, put a chat_template.jinja beside its"
                " tokenizer, or bring the data as instruction/output or prompt/completion",
            )
        self._names = tokenizer.names
        self._eos = tokenizer.eos
        self._template = tokenizer.template
        self._tool_template = tokenizer.tool_template or tokenizer.template
        self._special = tuple(tokenizer.special)
        either = "|".join(re.escape(token) for token in sorted(self._special, key=len)[::-1])
        # White space between an answer and the mark that ends its turn belongs to the turn's end.
        self._turn_end = re.compile(rf"\s*(?:{either})" if either else r"(?!)")

    def render(self, row: Chat, *, anywhere: bool = False) -> Rendered:
        """The conversation's text and the spans of what is learnt. Raises RowError.

        With `anywhere` the spans do not matter (loss is on all): not finding them is no error.
        """
        template = self._tool_template if row.tools else self._template
        text, found = self._find(row, template)
        if found is None and "strftime_now" in template:
            # Two renderings of one row lie on two sides of midnight once in a while.
            text, found = self._find(row, template)
        if found is None and not anywhere:
            raise RowError(
                "the chat template rewrites this conversation: the answers' places in the text"
                " cannot be found exactly",
                "use a template that marks answers with {% generation %}, set weight 0 on all but"
                " the last answer, or train with loss_on=all",
            )
        closed = text.rstrip().endswith(self._eos)
        if not found:
            return Rendered(text, (), (0, len(text)), whole=True, closed=closed)
        tail = text[found[-1][1] :].rstrip() if row.learn[-1] else ""
        tail = tail or text[self._unmarked(text) :].rstrip()
        spans = tuple(self._with_turn_end(text, span, tail) for span in found)
        start, end = found[-1]
        answer = (start, start + self._unmarked(text[start:end]))
        return Rendered(text, spans, answer, whole=True, closed=closed)

    def _find(self, row: Chat, template: str) -> tuple[str, list[Span] | None]:
        if _GENERATION.search(template):
            text, blocks = self._write(template, row.messages, row.tools, track=True)
            return text, self._by_blocks(row, text, blocks)
        text, _ = self._write(template, row.messages, row.tools)
        found = self._by_marks(row, template, text)
        return text, self._by_beginnings(row, template, text) if found is None else found

    def _write(
        self,
        template: str,
        messages: Sequence[dict[str, Any]],
        tools: list[Any] | None,
        *,
        prompt: bool = False,
        track: bool = False,
    ) -> tuple[str, list[Span]]:
        """transformers' own sandboxed rendering; (text, the spans of generation blocks)."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            options: dict[str, Any] = dict(self._names)
            rendered: Any = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=track,
                add_generation_prompt=prompt,
                **options,
            )
        except Exception as error:  # noqa: BLE001 - said below
            # The template is the model's code: besides jinja's errors it can raise any of
            # Python's (a missing key, None + text) on a conversation it was not written for.
            raise RowError(
                f"the chat template refuses this conversation: {str(error)[:200]}",
                "bring the messages into the order it wants, often system, user, assistant, user…",
            ) from None
        texts, blocks = rendered
        return texts[0], [(start, end) for start, end in blocks[0]] if track else []

    def _by_blocks(self, row: Chat, text: str, blocks: list[Span]) -> list[Span] | None:
        """One generation block per assistant message, holding its content."""
        answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
        if len(blocks) != len(answers):
            return None
        for (start, end), i in zip(blocks, answers, strict=True):
            if row.messages[i]["content"].strip() not in text[start:end]:
                return None
        return [block for block, i in zip(blocks, answers, strict=True) if row.learn[i]]

    def _by_marks(self, row: Chat, template: str, text: str) -> list[Span] | None:
        learnt = [i for i, learn in enumerate(row.learn) if learn]
        if not learnt:
            return []
        if any(_BESIDE_CONTENT & row.messages[i].keys() for i in learnt) or "\ue0f0" in text:
            return None
        marked = list(row.messages)
        for i in learnt:
            marked[i] = {**marked[i], "content": _MARK.format(i)}
        rest, _ = self._write(template, marked, row.tools)
        pieces = []
        for i in learnt:
            piece, mark, rest = rest.partition(_MARK.format(i))
            if not mark:
                return None
            pieces.append(piece)
        pieces.append(rest)
        if "\ue0f0" in "".join(pieces):
            return None
        return _put_back(text, pieces, [row.messages[i]["content"] for i in learnt])

    def _by_beginnings(self, row: Chat, template: str, text: str) -> list[Span] | None:
        spans = []
        for i, learn in enumerate(row.learn):
            if not learn:
                continue
            before, _ = self._write(template, row.messages[:i], row.tools, prompt=True)
            end = self._end_of(i, row, template, text)
            if not text.startswith(before) or end is None or end <= len(before):
                return None
            spans.append((len(before), end))
        return spans

    def _end_of(self, i: int, row: Chat, template: str, text: str) -> int | None:
        """Where message `i` ends, without the mark that ends its turn where that is told apart."""
        if i == len(row.messages) - 1:
            return self._unmarked(text)
        until, _ = self._write(template, row.messages[: i + 1], row.tools)
        if text.startswith(until):
            return self._unmarked(until)
        # The template writes an answer otherwise once it is history (without its reasoning):
        # what follows the answer, found with a mark in its place, must end the whole.
        if _BESIDE_CONTENT & row.messages[i].keys():
            return None
        marked = list(row.messages)
        marked[i] = {**marked[i], "content": _MARK.format(i)}
        after = self._write(template, marked, row.tools)[0].partition(_MARK.format(i))[2]
        return len(text) - len(after) if after and text.endswith(after) else None

    def _with_turn_end(self, text: str, span: Span, tail: str) -> Span:
        """The span and the mark that ends the turn: a model must learn to stop.

        What stands after the last answer (`tail`) ends the earlier turns too, as far as it stands
        there. In the last turn it runs to the end of the sequence's own mark, which may follow
        the turn's, or, where that mark is added later, to the end of the text.
        """
        start, end = span
        if self._unmarked(text) <= end or text[end:].rstrip() == tail:
            closed = text.rstrip()
            return start, len(closed) if closed.endswith(self._eos) else len(text)
        answer = text[start:end].rstrip()
        if self._unmarked(answer) < len(answer):
            return span  # a generation block that holds the mark
        length = 0
        while found := self._turn_end.match(tail, length):
            if not text.startswith(tail[: found.end()], end):
                break
            length = found.end()
        if not length and tail and text.startswith(tail, end):
            length = len(tail)
        return start, end + length

    def _unmarked(self, text: str) -> int:
        """The length of a text without the special tokens and white space at its end."""
        while True:
            text = text.rstrip()
            mark = next((mark for mark in self._special if mark and text.endswith(mark)), None)
            if mark is None:
                return len(text)
            text = text[: -len(mark)]


def _put_back(text: str, pieces: list[str], answers: list[str]) -> list[Span] | None:
    """Where the answers stand in a text that is piece, answer, piece, …; None if it is not."""
    if not text.startswith(pieces[0]):
        return None
    position, spans = len(pieces[0]), []
    for answer, piece, last in zip(
        answers, pieces[1:], [False] * (len(answers) - 1) + [True], strict=True
    ):
        # Templates commonly trim an answer's white space.
        for written in (answer, answer.strip(), answer.rstrip(), answer.lstrip()):
            end = position + len(written)
            follows = text[end:] == piece if last else text.startswith(piece, end)
            if written and text.startswith(written, position) and follows:
                break
        else:
            return None
        spans.append((position, end))
        position = end + len(piece)
    return spans

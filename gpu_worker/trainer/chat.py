"""The generate stage: answer what is asked, turn by turn, until a stop.

A model is asked in the way it was trained to be asked: conversations through the chat template,
instructions in their layout, anything else as it stands. Only conversations have a history; the
other ways were trained on single questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gpu_worker.protocol import Activity, AnswerPart, Turn
from gpu_worker.trainer.answers import stream
from gpu_worker.trainer.channel import Channel
from gpu_worker.trainer.measure import core
from models.adapter_work import ChatWork, Layout
from models.errors import CeloraError, InputError
from training_data.templates import instruction_prompt

_PART_SECONDS = 0.1  # a part of an answer is sent this often at most


@dataclass
class Prompts:
    """Turns as token ids, with the conversation so far."""

    tokenizer: Any
    layout: Layout
    most_tokens: int  # of one prompt
    history: list[dict[str, str]] = field(default_factory=list)

    def of(self, text: str) -> list[int]:
        """Raises InputError for a prompt that is too long, alone, or of no token."""
        if self.layout == "instruction":
            ids = self._ids(instruction_prompt(text, ""))
        elif self.layout == "chat":
            self.history.append({"role": "user", "content": text})
            ids = self._conversation()
            while len(ids) > self.most_tokens and len(self.history) > 1:
                del self.history[:2]  # the oldest question and its answer make room
                ids = self._conversation()
        else:
            ids = self._ids(text)
        if not ids:  # of an empty text, with a tokenizer that begins with no token of its own
            raise InputError("nothing was asked", where="prompt", remedy="ask something")
        if len(ids) > self.most_tokens:
            raise InputError(
                f"this makes {len(ids)} tokens; with room for an answer {self.most_tokens} fit",
                where="prompt",
                remedy="ask something shorter, or start the chat with a smaller --max-new-tokens",
            )
        return ids

    def answered(self, text: str | None) -> None:
        """Keep the answer; without one the question goes as well."""
        if self.layout != "chat":
            return
        if text is None:
            self.history.pop()
        else:
            self.history.append({"role": "assistant", "content": text})

    def _conversation(self) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            self.history, tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])


def talk(
    *,
    tuned: Any,
    base_context: Callable[[], AbstractContextManager[Any]],
    tokenizer: Any,
    work: ChatWork,
    channel: Channel,
) -> NoReturn:
    """Serve turns. Raises StopRequested, in the middle of an answer as well."""
    prompts = Prompts(
        tokenizer, layout_for(work.layout, tokenizer), _room(tuned, work.max_new_tokens)
    )
    channel.send(Activity(what="waiting for a question"))
    while True:
        turn = channel.next_turn()
        if turn.subject == "base":
            with base_context() as base:
                _answer(base, prompts, turn, work, channel)
        else:
            _answer(tuned, prompts, turn, work, channel)


def layout_for(asked: Layout, tokenizer: Any) -> Layout:
    """By the chat template where there is one, unless the training data says otherwise."""
    if asked in {"auto", "chat"}:
        return "chat" if tokenizer.chat_template else "plain"
    return asked


def _answer(model: Any, prompts: Prompts, turn: Turn, work: ChatWork, channel: Channel) -> None:
    out = _Parts(turn.position, channel)
    try:
        ids = prompts.of(turn.prompt)
    except CeloraError as error:
        prompts.answered(None)
        out.end(error=error.what)
        return
    text = None
    try:
        text = stream(
            model,
            prompts.tokenizer,
            ids,
            max_new_tokens=work.max_new_tokens,
            temperature=work.temperature,
            seed=turn.position,
            say=out.say,
        )
    finally:
        prompts.answered(text)
    out.end()


class _Parts:
    """Sends an answer in parts, a few a second."""

    def __init__(self, position: int, channel: Channel) -> None:
        self._position, self._channel = position, channel
        self._text = ""
        self._sent_at = 0.0
        self._tokens = 0

    def say(self, text: str, tokens: int) -> None:
        """More of the answer, or only another token of it. Raises StopRequested."""
        self._channel.raise_if_stopped()
        self._text += text
        self._tokens = tokens
        if self._text and time.monotonic() - self._sent_at >= _PART_SECONDS:
            self._send()

    def end(self, error: str | None = None) -> None:
        self._send(whole=True, error=error)

    def _send(self, *, whole: bool = False, error: str | None = None) -> None:
        self._channel.send(
            AnswerPart(
                position=self._position,
                text=self._text,
                tokens=self._tokens,
                whole=whole,
                error=error,
            )
        )
        self._text, self._sent_at = "", time.monotonic()


def _room(model: Any, max_new_tokens: int) -> int:
    """Tokens that a prompt may have, so that the answer still fits into the model's context."""
    config = core(model).config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or 1 << 20
    return max(1, int(context) - max_new_tokens)

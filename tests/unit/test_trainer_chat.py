"""From what is asked to a prompt, with a tokenizer whose tokens are bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpu_worker.trainer.chat import Prompts, layout_for
from models.errors import InputError


class Tokenizer:
    """A byte is a token; a conversation is its roles and texts."""

    chat_template = "there is one"

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + list(text.encode())}

    def apply_chat_template(self, history: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"{one['role'][0]}:{one['content']}|" for one in history) + "a:"


def prompts(layout: str, most: int = 1000) -> Prompts:
    return Prompts(Tokenizer(), layout, most)  # type: ignore[arg-type]  # plain text


def test_only_a_conversation_has_a_history() -> None:
    talk = prompts("chat")
    assert bytes(talk.of("hi")) == b"u:hi|a:"
    talk.answered("yes")
    assert bytes(talk.of("so")) == b"u:hi|a:yes|u:so|a:"
    plain = prompts("plain")
    assert plain.of("hi") == [0, *b"hi"]
    plain.answered("yes")
    assert plain.of("so") == [0, *b"so"]


def test_an_instruction_is_asked_in_the_layout_of_the_training() -> None:
    assert bytes(prompts("instruction").of("Add.")[1:]) == (
        b"### Instruction:\nAdd.\n\n### Response:\n"
    )


def test_the_oldest_turns_make_room_and_a_prompt_that_fits_nowhere_is_refused() -> None:
    talk = prompts("chat", most=20)
    talk.of("first")
    talk.answered("answer")
    assert bytes(talk.of("next")) == b"u:next|a:"
    talk.answered(None)  # no answer came: the question is forgotten
    with pytest.raises(InputError, match="20 fit"):
        talk.of("much longer than there is room")
    talk.answered(None)
    assert talk.history == []


def test_a_prompt_of_no_token_is_refused() -> None:
    empty = Prompts(lambda _: {"input_ids": []}, "plain", 100)
    with pytest.raises(InputError, match="nothing was asked"):
        empty.of("")


def test_the_data_decides_before_the_template() -> None:
    with_template = Tokenizer()
    without = SimpleNamespace(chat_template=None)
    assert layout_for("auto", with_template) == "chat"
    assert layout_for("auto", without) == layout_for("chat", without) == "plain"
    assert layout_for("instruction", with_template) == "instruction"

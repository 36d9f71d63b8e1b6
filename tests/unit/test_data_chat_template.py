"""Where answers begin and end in a rendered conversation, for templates as models publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import DataError
from tests.data_tokenizers import BACKWARDS, CHATS, make_chat_tokenizer, make_tokenizer
from training_data.chat_template import ChatTemplate
from training_data.formats.rows import Chat
from training_data.problems import RowError
from training_data.templates import Rendered
from training_data.tokenizer import load


def chat(*turns: tuple[str, str], learn: tuple[bool, ...] | None = None, **extra: Any) -> Chat:
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[-1].update(extra)
    learnt = learn or tuple(message["role"] == "assistant" for message in messages)
    return Chat(messages, list(learnt))


TWO_TURNS = chat(
    ("user", "What is it?"),
    ("assistant", "It is a fox."),
    ("user", "And now?"),
    ("assistant", "A dog."),
)


@pytest.fixture
def template(tmp_path: Path, request: pytest.FixtureRequest) -> ChatTemplate:
    return ChatTemplate(load(str(make_chat_tokenizer(tmp_path, request.param))), "base")


def learnt(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    ("template", "expected", "ends_by_itself"),
    [
        ("chatml", ["It is a fox.<|im_end|>", "A dog.<|im_end|>"], True),
        ("llama-3", ["It is a fox.<|eot_id|>", "A dog.<|eot_id|>"], True),
        ("llama-2", ["It is a fox. </s>", "A dog. </s>"], True),
        # Gemma's sequence ends with another token than a turn: it is added, and learnt.
        ("gemma", ["It is a fox.<end_of_turn>", "A dog.<end_of_turn>\n"], False),
        ("phi-3", ["It is a fox.<|end|>", "A dog.<|end|>\n<|endoftext|>"], True),
        ("qwen-3", ["It is a fox.<|im_end|>", "A dog.<|im_end|>"], True),
        ("generation", ["It is a fox.<|im_end|>", "A dog.<|im_end|>"], True),
        ("words", ["It is a fox.", "A dog.\n"], False),
    ],
    indirect=["template"],
)
def test_every_answer_carries_loss_with_what_ends_its_turn(
    template: ChatTemplate, expected: list[str], ends_by_itself: object
) -> None:
    rendered = template.render(TWO_TURNS)
    assert learnt(rendered) == expected
    assert rendered.closed is ends_by_itself
    start, end = rendered.answer
    assert rendered.text[start:end] == "A dog."


@pytest.mark.parametrize("template", ["chatml", "llama-2", "generation"], indirect=True)
def test_a_message_of_weight_0_carries_none(template: ChatTemplate) -> None:
    row = Chat(TWO_TURNS.messages, [False, False, False, True])
    assert [text.startswith("A dog.") for text in learnt(template.render(row))] == [True]


@pytest.mark.parametrize("template", ["chatml"], indirect=True)
def test_an_answer_that_the_question_quotes_is_found_in_its_own_place(
    template: ChatTemplate,
) -> None:
    rendered = template.render(chat(("user", "say yes yes"), ("assistant", "yes")))
    assert rendered.spans[0][0] == rendered.text.rindex("yes")
    assert learnt(rendered) == ["yes<|im_end|>"]


@pytest.mark.parametrize("template", ["llama-3"], indirect=True)
def test_white_space_that_a_template_trims_is_no_obstacle(template: ChatTemplate) -> None:
    rendered = template.render(chat(("user", "a"), ("assistant", "\n  spaced out \n")))
    assert learnt(rendered) == ["spaced out<|eot_id|>"]


@pytest.mark.parametrize("template", ["qwen-3"], indirect=True)
def test_reasoning_that_a_template_moves_is_learnt_where_it_stands(
    template: ChatTemplate,
) -> None:
    row = chat(
        ("user", "a"),
        ("assistant", "<think>first</think>one"),
        ("user", "b"),
        ("assistant", "<think>then</think>two"),
    )
    # Earlier reasoning is left out by the template; the last is laid out anew.
    assert learnt(template.render(row)) == [
        "one<|im_end|>",
        "<think>\nthen\n</think>\n\ntwo<|im_end|>",
    ]
    apart = chat(("user", "a"), ("assistant", "two"), reasoning_content="then")
    assert learnt(template.render(apart)) == ["<think>\nthen\n</think>\n\ntwo<|im_end|>"]


@pytest.mark.parametrize("template", ["qwen-3"], indirect=True)
def test_a_tool_call_is_learnt(template: ChatTemplate) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    row = chat(("user", "a"), ("assistant", ""), tool_calls=calls)
    assert learnt(template.render(row)) == [
        '<think>\n\n</think>\n\n\n<tool_call>{"a": 1}</tool_call><|im_end|>'
    ]


def test_a_template_that_reorders_messages_is_refused(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path, template=BACKWARDS)
    with pytest.raises(RowError, match="cannot be found exactly") as refused:
        ChatTemplate(load(str(folder)), "base").render(TWO_TURNS)
    assert "loss_on=all" in refused.value.remedy


@pytest.mark.parametrize("template", ["gemma"], indirect=True)
def test_what_a_template_itself_refuses_is_passed_on(template: ChatTemplate) -> None:
    with pytest.raises(RowError, match="System role not supported"):
        template.render(chat(("system", "be kind"), ("user", "a"), ("assistant", "b")))


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    folder = make_tokenizer(tmp_path, template=evil)
    with pytest.raises(RowError, match="unsafe"):
        ChatTemplate(load(str(folder)), "base").render(TWO_TURNS)


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    tokenizer = load(str(make_tokenizer(tmp_path)))
    with pytest.raises(DataError, match="no chat template") as refused:
        ChatTemplate(tokenizer, "some/base")
    assert "instruct version" in str(refused.value)


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(CHATS))
def test_text_and_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = make_chat_tokenizer(tmp_path, name)
    frozen = load(str(folder))
    rendered = ChatTemplate(frozen, "base").render(TWO_TURNS)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert rendered.text == theirs.apply_chat_template(TWO_TURNS.messages, tokenize=False)
    ids = theirs.apply_chat_template(TWO_TURNS.messages, return_dict=False)
    assert frozen.backend.encode(rendered.text, add_special_tokens=False).ids == ids

"""Record shapes: detected, said or mapped, and every way a row can be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import DataError
from training_data.formats.rows import Chat, Plain, Row
from training_data.formats.shapes import Shape, shape_of
from training_data.problems import RowError

HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def shape(record: Any, asked: str = "auto", **mapping: str) -> Shape:
    return shape_of(record, asked, mapping, where="rows.jsonl", line=1)


def parsed(record: Any, **mapping: str) -> Row:
    return shape(record, **mapping).parse(record)


@pytest.mark.parametrize(
    ("record", "name", "row"),
    [
        (
            {"instruction": "add", "input": "1 2", "output": "3"},
            "instruction",
            Plain("### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n", "3"),
        ),
        (
            {"instruction": "sing", "input": "", "output": "la", "text": "rendered", "id": 7},
            "instruction",
            Plain("### Instruction:\nsing\n\n### Response:\n", "la"),
        ),
        (
            {"instruction": "sing", "output": "la", "system": "You sing."},
            "instruction",
            Plain("You sing.\n\n### Instruction:\nsing\n\n### Response:\n", "la"),
        ),
        ({"prompt": "a: ", "completion": "b"}, "prompt_completion", Plain("a: ", "b")),
        ({"prompt": "", "completion": "b"}, "prompt_completion", Plain("", "b")),
        ({"text": "all of it"}, "text", Plain("", "all of it")),
        ({"messages": HELLO}, "messages", Chat(HELLO, [False, True])),
        ({"conversations": SHARED, "id": "x"}, "sharegpt", Chat(HELLO, [False, True])),
        ({"conversations": HELLO}, "sharegpt", Chat(HELLO, [False, True])),
        (
            {"prompt": [HELLO[0]], "completion": [HELLO[1]]},
            "prompt_completion",
            Chat(HELLO, [False, True]),
        ),
    ],
)
def test_shapes_are_detected(record: dict[str, Any], name: str, row: Row) -> None:
    assert shape(record).name == name
    assert parsed(record) == row


def test_columns_are_mapped() -> None:
    record = {"question": "1+1", "answer": "2"}
    assert parsed(record, prompt="question", completion="answer") == Plain("1+1", "2")
    assert shape(record, instruction="question", output="answer").name == "instruction"
    assert parsed({"dialog": SHARED}, conversations="dialog") == Chat(HELLO, [False, True])
    # A mapped role says the shape, whatever else the row would fit.
    assert shape({"text": "a", "messages": HELLO}, text="text").name == "text"


def test_an_optional_column_may_be_missing_from_the_first_row() -> None:
    found = shape({"q": "a", "a": "b"}, instruction="q", output="a", input="context")
    assert found.parse({"q": "a", "context": "c", "a": "b"}) == Plain(
        "### Instruction:\na\n\n### Input:\nc\n\n### Response:\n", "b"
    )


@pytest.mark.parametrize(
    ("record", "mapping", "parts"),
    [
        (
            {"question": "a", "answer": "b"},
            {},
            (
                "no known shape",
                "question, answer",
                "--map instruction=question --map output=answer",
            ),
        ),
        ({"a": 1}, {"prompt": "q"}, ("no column 'q'", "the columns are: a")),
        (["a"], {}, ("the row is a list, not an object",)),
        ("a", {}, ("line 1", "the row is")),
    ],
)
def test_rows_of_no_known_shape(
    record: Any, mapping: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as raised:
        shape(record, **mapping)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("record", "what", "remedy"),
    [
        ({"instruction": "a", "output": ""}, "`output` is empty", "remove the row"),
        ({"instruction": "a", "output": " \n"}, "`output` is empty", "remove the row"),
        ({"instruction": "a", "output": None}, "`output` is empty", "remove the row"),
        ({"instruction": "a", "output": 42}, "`output` is a number, not text", '"42"'),
        ({"instruction": "a", "output": True}, "`output` is true/false", '"true"'),
        ({"instruction": "a", "output": ["b"]}, "`output` is a list", "one piece of text"),
        ({"instruction": "a", "input": {"b": 1}, "output": "c"}, "`input` is an object", "text"),
        ({"instruction": "", "output": "b"}, "`instruction` is empty", "fill it in"),
        ({"instruction": "a"}, "there is no `output`; the row has: instruction", "--map"),
        ({"prompt": "a", "completion": "b"}, "the row has the shape prompt_completion", "split"),
        ({"messages": HELLO}, "the row has the shape messages, the data before it", "split"),
        ([1], "the row is a list, not an object", "{"),
        (None, "the row is null", "{"),
    ],
)
def test_wrong_instruction_rows(record: Any, what: str, remedy: str) -> None:
    with pytest.raises(RowError) as raised:
        shape({"instruction": "a", "output": "b"}).parse(record)
    assert what in raised.value.what
    assert remedy in raised.value.remedy


def turn(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ("hello", "`messages` is text, not a list"),
        ([], "`messages` is empty"),
        (None, "`messages` is null"),
        ([turn("user")], "no assistant message"),
        ([turn("user"), "hi"], "`messages[1]` is text, not a message"),
        ([turn("user"), turn("robot")], '`messages[1]` has the role "robot"'),
        ([turn("user"), {"content": "x"}], "`messages[1]` has the role null"),
        ([turn("user"), turn("assistant", "")], "the assistant's answer is empty"),
        ([turn("user"), turn("assistant", None)], "the assistant's answer is empty"),
        ([turn("user"), turn("assistant", 5)], "the content is a number"),
        ([turn("user", [{"type": "image_url"}]), turn("assistant")], "a part that is no text"),
        ([turn("user"), turn("assistant", weight=0.5)], "`messages[1].weight` is 0.5"),
        ([turn("user"), turn("assistant", weight=True)], "`messages[1].weight` is True"),
        (
            [turn("user"), turn("assistant", tool_calls=[{"function": {"arguments": "{"}}])],
            "the arguments are no JSON",
        ),
    ],
)
def test_wrong_conversations(messages: Any, what: str) -> None:
    with pytest.raises(RowError) as raised:
        shape({"messages": HELLO}).parse({"messages": messages})
    assert what in raised.value.what


def test_weights_say_what_is_learnt() -> None:
    row = parsed(
        {
            "messages": [
                turn("user"),
                turn("assistant", "", weight=0),  # empty, but nothing is learnt from it
                turn("user"),
                turn("assistant", weight=1),
                turn("user"),
                turn("assistant"),
            ]
        }
    )
    assert isinstance(row, Chat)
    assert row.learn == [False, False, False, True, False, True]
    assert all("weight" not in message for message in row.messages)


def test_turns_after_the_last_answer_are_left_off() -> None:
    row = parsed({"messages": [*HELLO, turn("user", "more?")]})
    assert row == Chat(HELLO, [False, True])
    assert isinstance(row, Chat)
    assert row.cut_turns == 1


def test_parts_tools_and_a_system_column() -> None:
    record = {
        "system": "Be brief.",
        "tools": '[{"type": "function"}]',
        "messages": [
            turn("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            turn("assistant", None, tool_calls=[{"function": {"arguments": '{"n": 1}'}}]),
        ],
    }
    row = parsed(record)
    assert isinstance(row, Chat)
    assert row.messages[0] == turn("system", "Be brief.")
    assert row.messages[1]["content"] == "ab"
    assert row.messages[2]["tool_calls"] == [{"function": {"arguments": {"n": 1}}}]
    assert row.learn == [False, False, True]
    assert row.tools == [{"type": "function"}]
    assert isinstance(record["messages"], list)  # and the record itself is as it was
    assert record["messages"][1]["tool_calls"] == [{"function": {"arguments": '{"n": 1}'}}]


def test_nulls_that_columnar_files_fill_in_are_nothing() -> None:
    filled = [{**message, "weight": None, "tool_calls": None} for message in HELLO]
    assert parsed({"messages": filled, "tools": None}) == Chat(HELLO, [False, True])


def test_a_fingerprint_is_of_what_the_row_says() -> None:
    one = parsed({"instruction": "a", "output": "b", "id": 1})
    other = parsed({"id": 2, "output": "b", "instruction": "a"})
    assert one.fingerprint() == other.fingerprint()
    # Fixed for all time: another would move rows between training and evaluation.
    assert one.fingerprint() == 72229625392769123262138670310742400946
    assert Plain("ab", "c").fingerprint() != Plain("a", "bc").fingerprint()
    weighted = Chat(HELLO, [False, False])
    assert weighted.fingerprint() != Chat(HELLO, [False, True]).fingerprint()


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RowError, match="surrogate"):
        parsed({"text": "a \ud83d b"}).fingerprint()
    with pytest.raises(RowError, match="surrogate"):
        parsed({"messages": [turn("user", "\udc00"), turn("assistant")]}).fingerprint()

"""Preference pairs: every shape that is taken, what is refused, what is written for a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import DataError, SpecError
from models.spec import parse_spec
from tests.data_samples import made, read, write
from tests.data_tokenizers import make_chat_tokenizer
from training_data.formats.rows import Chat, Pair, Plain
from training_data.formats.shapes import Shape, shape_of
from training_data.problems import RowError

ASK = {"role": "user", "content": "hi"}
GOOD, BAD = ({"role": "assistant", "content": said} for said in ("hello", "go away"))
CHATS = Pair(Chat([ASK, GOOD], [False, True]), Chat([ASK, BAD], [False, True]))
OPENAI = {
    "input": {"messages": [ASK]},
    "preferred_output": [GOOD],
    "non_preferred_output": [BAD],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_chat_tokenizer(tmp_path_factory.mktemp("base"), "chatml"))


def shape(record: Any, **mapping: str) -> Shape:
    return shape_of(record, "auto", mapping, pairs=True, where="rows.jsonl", line=1)


def plain(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(Plain(prompt, chosen), Plain(prompt, rejected))


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"prompt": "a: ", "chosen": "b", "rejected": "c"}, plain("a: ", "b", "c")),
        (
            {"prompt": "a: ", "chosen": "b", "rejected": "c", "system": "Be short."},
            plain("Be short.\n\na: ", "b", "c"),
        ),
        ({"chosen": "1 + 1 = 2", "rejected": "1 + 1 = 3"}, plain("1 + 1 =", " 2", " 3")),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, CHATS),
        ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, CHATS),
        # The prompt's text beside whole conversations, as in ultrafeedback_binarized.
        ({"prompt": "hi", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": []}, CHATS),
    ],
)
def test_shapes_of_trl(record: dict[str, Any], pair: Pair) -> None:
    assert shape(record).name == "preference"
    assert shape(record).parse(record) == pair


def test_the_shape_of_openai() -> None:
    assert shape(OPENAI).name == "openai_preference"
    assert shape(OPENAI).parse(OPENAI) == CHATS


def test_columns_can_have_other_names() -> None:
    record = {"question": "a: ", "better": "b", "worse": "c"}
    mapping = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert shape(record, **mapping).parse(record) == plain("a: ", "b", "c")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "say the same"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "`chosen` is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "`rejected` is a number"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "`rejected` a list"),
        ({"chosen": "a word", "rejected": "a"}, "`rejected` ends where"),
        ({"prompt": [ASK], "chosen": [], "rejected": [BAD]}, "`chosen` has no message"),
        ({"prompt": [ASK, GOOD], "chosen": [ASK], "rejected": [BAD]}, "`chosen` has no assistant"),
        (
            {"prompt": [ASK], "chosen": [{"role": "bird"}], "rejected": [BAD]},
            "chosen.1.` has the r",
        ),
        (OPENAI | {"input": "hi"}, "`input` is text, not an object"),
        (OPENAI | {"input": {"messages": []}}, "`input.messages` is empty"),
        (OPENAI | {"non_preferred_output": "no"}, "`non_preferred_output` is text"),
        (OPENAI | {"non_preferred_output": [GOOD]}, "say the same"),
    ],
)
def test_what_is_wrong_with_a_pair_is_told(record: dict[str, Any], what: str) -> None:
    name = "openai_preference" if "input" in record else "preference"
    roles = ("prompt", "chosen", "rejected", "system", "tools", "input", "preferred_output")
    columns = {role: role for role in (*roles, "non_preferred_output")}
    with pytest.raises(RowError, match=what) as raised:
        Shape(name, columns).parse(record)
    assert raised.value.remedy


def test_rows_for_another_method_are_refused_with_its_name() -> None:
    with pytest.raises(DataError, match="prompt_completion") as other:
        shape({"prompt": "a", "completion": "b"})
    assert "chosen and rejected" in (other.value.remedy or "")
    with pytest.raises(DataError, match="have the shape preference") as pairs:
        shape_of({"prompt": "a", "chosen": "b", "rejected": "c"}, "auto", {}, where="d", line=1)
    assert "method dpo" in (pairs.value.remedy or "")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"method": "lora", "shape": "preference"}, "only for method 'dpo'"),
        ({"method": "dpo", "shape": "messages"}, "dpo needs some"),
        ({"method": "dpo", "packing": "on"}, "not packed"),
        ({"method": "dpo", "loss_on": "all"}, "compares answers"),
        ({"method": "lora", "dpo_beta": 0.5}, "dpo_beta: only"),
        ({"method": "dpo", "dpo_base": "full"}, "lora"),
        ({"method": "dpo", "dpo_base": "qlora", "target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError, match=what):
        parse_spec({"base_model": "m", "dataset": "d"} | fields)


def test_both_answers_are_tokenised_with_the_prompt_and_counted(base: str, tmp_path: Path) -> None:
    rows = [
        OPENAI | {"input": {"messages": [{"role": "user", "content": f"what is {n}?"}]}}
        for n in range(60)
    ]
    data = write(tmp_path / "pairs.jsonl", [*rows, rows[0]])
    verdict = made(
        data, base, tmp_path / "out", method="dpo", validation_fraction=0.2, epochs=60
    ).verdict
    assert (verdict["shape"], verdict["dropped"]) == ("openai_preference", {"duplicate": 1})
    assert not verdict["packed"]  # though there are steps enough
    train, held_out = read(tmp_path / "out", "train.arrow"), read(tmp_path / "out", "eval.arrow")
    assert (len(train), len(held_out)) == (verdict["rows_train"], verdict["rows_eval"])
    assert len(train) + len(held_out) == 60
    tokens = sum(len(row["input_ids"]) + len(row["rejected_ids"]) for row in train)
    assert verdict["tokens_train"] == tokens
    longest = max(max(len(row["input_ids"]), len(row["rejected_ids"])) for row in train)
    assert verdict["lengths"]["max"] == longest
    for row in train:
        asked = row["labels"].index(next(label for label in row["labels"] if label >= 0))
        assert row["rejected_labels"][:asked] == [-100] * asked
        assert row["rejected_ids"][:asked] == row["input_ids"][:asked]
        learnt = [[t for t in row[name] if t >= 0] for name in ("labels", "rejected_labels")]
        assert row["input_ids"][asked : asked + len(learnt[0])] == learnt[0] != learnt[1]
    assert held_out[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert held_out[0]["answer"] == "hello"
    assert "⟦hello" in verdict["example"]["text_with_mask"]
    assert "⟦go away" in verdict["example"]["rejected"]["text_with_mask"]


def test_a_pair_is_cut_or_dropped_as_one_row(base: str, tmp_path: Path) -> None:
    long = "word " * 60
    rows = [
        {"prompt": "a: ", "chosen": "b", "rejected": "c"},
        {"prompt": "a: ", "chosen": long, "rejected": long + "end"},  # both are too long
        {"prompt": "word " * 40, "chosen": "b", "rejected": "c"},  # nothing of an answer is left
        {"prompt": "b: ", "chosen": "yes", "rejected": long},
    ]
    data = write(tmp_path / "pairs.jsonl", rows)
    fields: dict[str, Any] = {"method": "dpo", "max_sequence_length": 32, "validation_fraction": 0}
    cut = made(data, base, tmp_path / "cut", **fields).verdict
    assert (cut["truncated"], cut["dropped"]) == (2, {"answer_cut_off": 1})
    assert cut["rows_train"] == 3
    dropped = made(data, base, tmp_path / "dropped", over_long="drop", **fields).verdict
    assert (dropped["truncated"], dropped["dropped"]) == (0, {"over_long": 3})


def test_a_wrong_pair_is_one_problem_with_its_line(base: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a: ", "chosen": "b", "rejected": "c"} for _ in range(3)]
    rows[1] = {"prompt": "a: ", "chosen": "b", "rejected": "b"}
    data = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError) as raised:
        made(data, base, tmp_path / "out", method="dpo")
    assert [problem.line for problem in raised.value.problems] == [2]
    assert raised.value.problem_count == 1

"""Preparing whole data sets: what is written, counted, said and refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from models.errors import BaseModelError, DataError
from tests.data_samples import made, read, row, write
from tests.data_tokenizers import make_chat_tokenizer, make_tokenizer

GSM8K = {"columns": {"instruction": "question", "output": "answer"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("base")))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row(n) for n in range(200)])


def test_real_rows(shared_data: Path, base: str, tmp_path: Path) -> None:
    data = shared_data / "gsm8k-train.jsonl"
    prepared = made(data, base, tmp_path / "out", **GSM8K)
    verdict = prepared.verdict
    assert (verdict["shape"], verdict["rows_read"], verdict["dropped"]) == ("instruction", 7473, {})
    assert verdict["rows_train"] + verdict["rows_eval"] == 7473
    assert verdict["rows_eval"] == pytest.approx(0.05 * 7473, rel=0.2)
    assert verdict["digests"]["data"] == hashlib.sha256(data.read_bytes()).hexdigest()
    lengths = verdict["lengths"]
    assert lengths["min"] < lengths["p50"] < lengths["p95"] < lengths["p99"] < lengths["max"]
    assert 0 < verdict["masked_share"] < 1
    example = verdict["example"]
    assert example["text_with_mask"].startswith("### Instruction:\nNatalia sold clips")
    assert "### Response:\n⟦Natalia sold 48/2" in example["text_with_mask"]
    assert example["text_with_mask"].endswith("#### 72</s>⟧")
    assert [piece["loss"] for piece in example["segments"]] == [False, True]
    assert json.loads((tmp_path / "out" / "verdict.json").read_text()) == verdict
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "eval.arrow",
        "train.arrow",
        "verdict.json",
    ]

    train, held_out = read(tmp_path / "out", "train.arrow"), read(tmp_path / "out", "eval.arrow")
    assert verdict["packed"]
    assert len(train) == verdict["sequences"]
    assert sum(len(pack["seq_lengths"]) for pack in train) == verdict["rows_train"]
    assert sum(len(pack["input_ids"]) for pack in train) == verdict["tokens_train"]
    assert len(held_out) == verdict["rows_eval"]
    one = held_out[0]
    assert one["input_ids"][: len(one["prompt_ids"])] == one["prompt_ids"]
    assert set(one["labels"][: len(one["prompt_ids"])]) == {-100}
    assert one["labels"][len(one["prompt_ids"]) :] == one["input_ids"][len(one["prompt_ids"]) :]
    assert one["prompt"].endswith("### Response:\n")


def test_real_rows_against_their_own_test_set(shared_data: Path, base: str, tmp_path: Path) -> None:
    test = str(shared_data / "gsm8k-test.jsonl")
    data = tmp_path / "rows.jsonl"
    leaked = (shared_data / "gsm8k-test.jsonl").read_text().splitlines(keepends=True)[:5]
    data.write_text((shared_data / "gsm8k-train.jsonl").read_text() + "".join(leaked))
    verdict = made(data, base, tmp_path / "out", eval_dataset=test, **GSM8K).verdict
    assert (verdict["rows_train"], verdict["rows_eval"]) == (7473, 1319)
    assert verdict["dropped"] == {"in_evaluation_data": 5}
    assert set(verdict["digests"]) == {"data", "eval_data", "settings", "tokenizer"}


def test_duplicates_are_dropped_whatever_else_their_records_hold(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{**row(n % 50), "id": n} for n in range(120)])
    verdict = made(data, base, tmp_path / "out").verdict
    assert (verdict["rows_read"], verdict["dropped"]) == (120, {"duplicate": 70})
    assert verdict["rows_train"] + verdict["rows_eval"] == 50


def test_no_row_is_in_both_parts_and_new_rows_move_none(
    rows: Path, base: str, tmp_path: Path
) -> None:
    def answers(folder: Path) -> set[str]:
        return {found["answer"] for found in read(folder, "eval.arrow")}

    options: dict[str, Any] = {"validation_fraction": 0.2, "packing": "off"}
    first = made(rows, base, tmp_path / "first", **options)
    trained = {tuple(found["input_ids"]) for found in read(tmp_path / "first", "train.arrow")}
    assert not trained & {tuple(f["input_ids"]) for f in read(tmp_path / "first", "eval.arrow")}
    assert first.verdict["rows_eval"] == pytest.approx(40, abs=25)

    more = write(tmp_path / "more.jsonl", [row(n) for n in reversed(range(300))])
    made(more, base, tmp_path / "more", **options)
    known = {record["completion"] for record in (row(n) for n in range(200))}
    assert answers(tmp_path / "more") & known == answers(tmp_path / "first")


def test_equal_held_out_rows_have_equal_digests_whatever_else_differs(
    rows: Path, base: str, tmp_path: Path
) -> None:
    """Runs with other settings, or more data beside their own held-out file, can be compared."""

    def held_out(name: str, data: Path = rows, **options: Any) -> str | None:
        verdict = made(data, base, tmp_path / name, packing="off", **options).verdict
        digest: str | None = verdict["held_out_digest"]
        return digest

    first = held_out("first", validation_fraction=0.2)
    assert held_out("longer", validation_fraction=0.2, epochs=9, batch_size=2) == first
    assert held_out("fewer", validation_fraction=0.1) != first
    assert held_out("all loss", validation_fraction=0.2, loss_on="all") != first
    test = write(tmp_path / "test.jsonl", [row(n) for n in range(500, 510)])
    more = write(tmp_path / "more.jsonl", [row(n) for n in range(300)])
    own = held_out("own", eval_dataset=str(test))
    assert held_out("own, more", more, eval_dataset=str(test)) == own
    assert held_out("none", validation_fraction=0) is None


@pytest.mark.parametrize(
    ("fields", "packed"),
    [
        ({"packing": "off"}, False),
        ({"packing": "on"}, True),
        ({"packing": "auto"}, False),  # 190 rows of 20 tokens would be a handful of steps
        ({"packing": "auto", "epochs": 1000, "max_sequence_length": 64}, True),
        ({"packing": "auto", "max_steps": 60, "max_sequence_length": 64}, False),
    ],
)
def test_packing(
    rows: Path, base: str, tmp_path: Path, fields: dict[str, Any], packed: object
) -> None:
    verdict = made(rows, base, tmp_path / "out", batch_size=1, **fields).verdict
    assert verdict["packed"] is packed
    train = read(tmp_path / "out", "train.arrow")
    assert ("seq_lengths" in train[0]) is packed
    assert len(train) == verdict["sequences"]


def test_steps_and_warnings(rows: Path, base: str, tmp_path: Path) -> None:
    verdict = made(rows, base, tmp_path / "out", max_sequence_length=12).verdict
    assert verdict["steps_per_epoch"] == -(-verdict["rows_train"] // 16)
    assert verdict["total_steps"] == 3 * verdict["steps_per_epoch"]
    per_step = verdict["tokens_train"] / verdict["steps_per_epoch"]
    assert verdict["tokens_per_step"] == round(per_step)
    told = " | ".join(verdict["warnings"])
    assert f"only {verdict['total_steps']} optimizer steps" in told
    assert f"{verdict['truncated']} rows are cut off at 12 tokens" in told
    assert "rows are held out" in told


def test_prompts_that_run_into_their_answers_are_warned_of(base: str, tmp_path: Path) -> None:
    records = [{"prompt": f"{n}+1?", "completion": str(n + 1)} for n in range(30)]
    data = write(tmp_path / "rows.jsonl", records)
    verdict = made(data, base, tmp_path / "out").verdict
    assert any("run into each other" in warning for warning in verdict["warnings"])


def test_conversations(tmp_path: Path) -> None:
    chat = str(make_chat_tokenizer(tmp_path / "chat", "chatml"))
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    records = [
        {"messages": [{"role": r, "content": f"{c}{n}"} for r, c in turns]} for n in range(40)
    ]
    verdict = made(write(tmp_path / "rows.jsonl", records), chat, tmp_path / "out").verdict
    assert (verdict["shape"], verdict["template"]) == ("messages", "the tokenizer's chat template")
    assert any("after the last answer were left off" in text for text in verdict["warnings"])
    assert "<|im_start|>assistant\n⟦b" in verdict["example"]["text_with_mask"]


def test_conversations_need_a_chat_template(base: str, tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match="no chat template"):
        made(write(tmp_path / "rows.jsonl", [record]), base, tmp_path / "out")


def test_a_token_that_the_model_does_not_know_is_refused(rows: Path, tmp_path: Path) -> None:
    """The tokenizer's end was added after the model was made: there is no embedding for it."""
    base = make_tokenizer(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"eos_token": "<added>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    known = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": known}))
    with pytest.raises(BaseModelError, match=f"makes token {known}"):
        made(rows, str(base), tmp_path / "out")
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": known + 1}))
    assert made(rows, str(base), tmp_path / "out").verdict["rows_read"] == 200


def test_wrong_rows_fail_with_their_lines(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [row(n) for n in range(2000)])
    with data.open("a") as stream:
        stream.write('{"prompt": "a", "completion": ""}\n\nbroken\n{"text": "other"}\n')
    with pytest.raises(DataError) as raised:
        made(data, base, tmp_path / "out")
    found = [(problem.line, problem.what.partition(":")[0]) for problem in raised.value.problems]
    assert found == [
        (2001, "`completion` is empty"),
        (2003, "broken JSON"),
        (2004, "the row has the shape text, the data before it prompt_completion"),
    ]
    assert raised.value.problem_count == 3
    assert not (tmp_path / "out" / "verdict.json").exists()


def test_problems_of_several_files_and_of_evaluation_data_name_their_file(
    base: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", [row(1)])
    write(tmp_path / "data" / "b.jsonl", [{"prompt": "a", "completion": 1}])
    held_out = write(tmp_path / "eval.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError) as raised:
        made(tmp_path / "data", base, tmp_path / "out", eval_dataset=str(held_out))
    assert [problem.what for problem in raised.value.problems] == [
        "evaluation data: `completion` is empty",
        "b.jsonl: `completion` is a number, not text",
    ]


def test_nothing_left_after_filtering(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [{"prompt": "word " * 50, "completion": "a"}] * 2)
    with pytest.raises(DataError, match="no row is left to train on") as raised:
        made(data, base, tmp_path / "out", max_sequence_length=8)
    assert "1 dropped (duplicate), 1 dropped (answer_cut_off)" in str(raised.value)


def test_a_file_without_rows(base: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    with pytest.raises(DataError, match="no rows"):
        made(tmp_path / "rows.csv", base, tmp_path / "out")

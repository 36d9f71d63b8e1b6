"""Tokens and labels: the mask covers exactly the answer, and rows begin and end as they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BaseModelError
from models.spec import JobSpec
from tests.data_tokenizers import BACKWARDS, make_chat_tokenizer, make_tokenizer
from tests.environment import variables
from training_data.formats.rows import Chat, Plain, Row
from training_data.problems import Problems
from training_data.rows import Kept
from training_data.tokenise import Tokeniser, TokenRow
from training_data.tokenizer import Frozen, load
from training_data.watch import Watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Frozen:
    return load(str(folder))


def tokeniser(tokenizer: Frozen, **fields: Any) -> Tokeniser:
    spec = JobSpec(base_model="base", dataset="rows.jsonl", **fields)
    return Tokeniser(spec, tokenizer, problems=Problems(limit=9), watch=Watch())


def tokens(tokenizer: Frozen, *rows: Row, held_out: bool = False, **fields: Any) -> list[TokenRow]:
    all_kept = [Kept(row, line, "", held_out) for line, row in enumerate(rows, 1)]
    return list(tokeniser(tokenizer, **fields).tokens(all_kept))


def learnt(tokenizer: Frozen, row: TokenRow) -> str:
    return tokenizer.decode([i for start, end in row.loss for i in row.ids[start:end]])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=300)
@given(prompt=TEXTS, answer=TEXTS.filter(lambda text: bool(text.strip())))
def test_the_mask_covers_exactly_the_answer_and_its_end(
    tokenizer: Frozen, prompt: str, answer: str
) -> None:
    row = tokens(tokenizer, Plain(prompt, answer))[0]
    assert tokenizer.decode(row.ids) == f"{prompt}{answer}</s>"
    start = row.loss[0][0]
    assert row.loss == [(start, len(row.ids))]
    # All of the answer is learnt, and nothing before it but the beginning of a token that
    # straddles the joint, such as a space.
    masked, said = tokenizer.decode(row.ids[:start]), learnt(tokenizer, row)
    assert masked + said == f"{prompt}{answer}</s>"
    assert said.endswith(f"{answer}</s>")
    straddling = len(said) - len(answer) - len("</s>")
    assert straddling == 0 or straddling < len(tokenizer.decode(row.ids[start : start + 1]))


@settings(max_examples=100)
@given(prompt=TEXTS, answer=TEXTS)
def test_after_a_line_break_the_mask_is_exact_to_the_character(
    tokenizer: Frozen, prompt: str, answer: str
) -> None:
    row = tokens(tokenizer, Plain(f"{prompt}:\n", f"The{answer}"))[0]
    assert learnt(tokenizer, row) == f"The{answer}</s>"


def test_a_space_that_a_token_begins_with_is_learnt_with_it(tmp_path: Path) -> None:
    """Also where offsets leave it out, as those of Llama 3's tokenizer do."""
    trimming = load(str(make_tokenizer(tmp_path, trim_offsets=True)))
    for row in (Plain("the answer is", " fox"), Plain("the answer is ", "fox")):
        assert learnt(trimming, tokens(trimming, row)[0]) == " fox</s>"


def test_a_row_begins_as_the_tokenizer_would_begin_it(tmp_path: Path, tokenizer: Frozen) -> None:
    with_bos = load(str(make_tokenizer(tmp_path, add_bos=True)))
    row = tokens(with_bos, Plain("a: ", "fox"), held_out=True)[0]
    assert with_bos.decode(row.ids) == "<s>a: fox</s>"
    assert with_bos.decode(row.prompt_ids) == "<s>a:"  # " fox" is one token
    assert tokens(tokenizer, Plain("a: ", "fox"))[0].ids[0] != tokenizer.backend.token_to_id("<s>")


def test_an_end_that_is_there_is_not_put_twice(tokenizer: Frozen) -> None:
    row = tokens(tokenizer, Plain("a:\n", "b</s>"))[0]
    assert tokenizer.decode(row.ids) == "a:\nb</s>"
    assert learnt(tokenizer, row) == "b</s>"


def conversation(*learn: int) -> Chat:
    """user, assistant, user, assistant; loss on the messages of these numbers."""
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": r, "content": f"{r} {n}"} for n, r in enumerate(roles)]
    return Chat(messages, [n in learn for n in range(4)])


def kept(row: Row, line: int = 1, file: str = "") -> Kept:
    return Kept(row, line, file, held_out=False)


def test_a_conversation_is_learnt_in_its_answers(tmp_path: Path) -> None:
    chatml = load(str(make_chat_tokenizer(tmp_path, "chatml")))
    row = tokens(chatml, conversation(1, 3), held_out=True)[0]
    assert learnt(chatml, row) == "assistant 1<|im_end|>assistant 3<|im_end|>"
    assert chatml.decode(row.ids).count("<|im_end|>") == 4  # none was added
    assert (row.prompt[-12:], row.answer) == ("|>assistant\n", "assistant 3")
    assert chatml.decode(row.prompt_ids) == row.prompt
    weighted = tokens(chatml, conversation(1))[0]
    assert learnt(chatml, weighted) == "assistant 1<|im_end|>"


def test_a_conversation_whose_sequence_is_open_is_closed_and_learnt_so(tmp_path: Path) -> None:
    gemma = load(str(make_chat_tokenizer(tmp_path, "gemma")))
    row = tokens(gemma, conversation(1, 3))[0]
    assert gemma.decode(row.ids).startswith("<s><start_of_turn>user\n")
    assert learnt(gemma, row).endswith("assistant 3<end_of_turn>\n<eos>")


def test_loss_on_all_and_text(tokenizer: Frozen, tmp_path: Path) -> None:
    row = tokens(tokenizer, Plain("the question ", "the answer"), loss_on="all")[0]
    assert learnt(tokenizer, row) == "the question the answer</s>"
    text = tokens(tokenizer, Plain("", "all of it"), held_out=True)[0]
    assert learnt(tokenizer, text) == "all of it</s>"
    assert (text.prompt, text.answer) == ("", "all of it")
    assert tokenizer.decode(text.prompt_ids) == "</s>"  # a generation must start from something
    chatml = load(str(make_chat_tokenizer(tmp_path, "chatml")))
    row = tokens(chatml, conversation(), loss_on="all")[0]
    assert row.loss == [(0, len(row.ids))]


def test_where_answers_stand_does_not_matter_with_loss_on_all(tmp_path: Path) -> None:
    backwards = load(str(make_tokenizer(tmp_path, template=BACKWARDS)))
    row = tokens(backwards, conversation(1, 3), loss_on="all", held_out=True)[0]
    assert learnt(backwards, row) == "assistant 3\nuser 2\nassistant 1\nuser 0\n</s>"
    assert (row.prompt, row.answer) == ("", "assistant 3\nuser 2\nassistant 1\nuser 0\n")


LONG = Plain("question: ", "answer " * 40)


def test_over_long_rows_are_cut_without_an_end(tokenizer: Frozen) -> None:
    made = tokeniser(tokenizer, max_sequence_length=20)
    rows = list(made.tokens([kept(LONG), kept(Plain("a", "b"))]))
    assert len(rows[0].ids) == 20
    assert "</s>" not in tokenizer.decode(rows[0].ids)
    assert rows[0].length > 20
    assert (made.truncated, made.dropped) == (1, {})


def test_over_long_rows_are_dropped_when_asked(tokenizer: Frozen) -> None:
    made = tokeniser(tokenizer, max_sequence_length=20, over_long="drop")
    assert list(made.tokens([kept(LONG)])) == []
    assert made.dropped == {"over_long": 1}


def test_rows_that_teach_nothing_are_dropped_and_counted(tokenizer: Frozen, tmp_path: Path) -> None:
    made = tokeniser(tokenizer, max_sequence_length=20)
    assert list(made.tokens([kept(Plain("question " * 40, "answer"))])) == []
    assert made.dropped == {"answer_cut_off": 1}
    chatml = load(str(make_chat_tokenizer(tmp_path, "chatml")))
    made = tokeniser(chatml)
    row = conversation()
    assert list(made.tokens([kept(row)])) == []
    assert made.dropped == {"no_answer_to_learn": 1}


def test_a_row_far_over_the_limit_is_the_same_as_if_it_was_tokenised_whole(
    tokenizer: Frozen,
) -> None:
    words = "the quick brown fox jumps over the lazy dog " * 2000
    row = tokens(tokenizer, Plain("say: ", words), max_sequence_length=64)[0]
    whole = tokenizer.backend.encode("say: " + words).ids
    assert list(row.ids) == whole[:64]
    assert 64 < row.length < len(whole) / 10  # only part of it was looked at


def test_many_rows_come_in_order(tokenizer: Frozen) -> None:
    rows = tokens(tokenizer, *(Plain("n:\n", str(n)) for n in range(2000)))
    assert [learnt(tokenizer, row) for row in rows] == [f"{n}</s>" for n in range(2000)]


def test_a_row_that_a_template_refuses_is_a_problem_with_its_line(tmp_path: Path) -> None:
    gemma = load(str(make_chat_tokenizer(tmp_path, "gemma")))
    spec = JobSpec(base_model="base", dataset="rows.jsonl")
    problems = Problems(limit=9)
    made = Tokeniser(spec, gemma, problems=problems, watch=Watch())
    system = Chat(
        [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}],
        [False, True],
    )
    good = conversation(1, 3)
    assert list(made.tokens([kept(good), kept(system, 2, "b.jsonl")])) == []
    assert [(problem.line, problem.what) for problem in problems.listed] == [
        (2, "b.jsonl: the chat template refuses this conversation: System role not supported")
    ]


@pytest.mark.parametrize(
    ("fields", "files", "what"),
    [
        ({"eos": None}, {}, "end-of-sequence"),
        ({}, {"tokenizer.json": "{}"}, "cannot be used"),
    ],
)
def test_unusable_tokenizers(
    tmp_path: Path, fields: dict[str, Any], files: dict[str, str], what: str
) -> None:
    make_tokenizer(tmp_path, **fields)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BaseModelError, match=what):
        load(str(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no tokenizer"):
        load(str(tmp_path))


def test_a_tokenizers_own_code_is_not_run(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenization_evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    )
    config = (
        '{"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", null]}, "eos_token": "</s>"}'
    )
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(BaseModelError, match="trust_remote_code"):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_freezing_keeps_secrets_and_torch_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that loads a tokenizer knows no credentials: a model's code may run in it."""
    monkeypatch.setenv("CELORA_DATABASE_URL", "postgresql://secret@host/db")
    make_tokenizer(tmp_path)
    (tmp_path / "tokenization_own.py").write_text(
        "import os, sys\n"
        "from transformers import PreTrainedTokenizerFast\n"
        f"with open({str(tmp_path / 'saw')!r}, 'w') as file:\n"
        "    file.write(repr((dict(os.environ), sys.modules.get('torch'))))\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = '{"auto_map": {"AutoTokenizer": [null, "tokenization_own.Own"]}, "eos_token": "</s>"}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert load(str(tmp_path), trust_remote_code=True).eos == "</s>"
    saw = (tmp_path / "saw").read_text()
    assert "secret" not in saw
    assert saw.endswith("None)")


def test_a_tokenizer_is_frozen_once(folder: Path, tmp_path: Path) -> None:
    with variables(CELORA_HOME=str(tmp_path)):
        load(str(folder))
        made = {path.name: path.stat() for path in (tmp_path / "tokenizers").iterdir()}
        assert len(made) == 2
        load(str(folder))
        again = {path.name: path.stat() for path in (tmp_path / "tokenizers").iterdir()}
        # The same files, not others of the same names: their times tell when they were last used.
        assert {name: found.st_ino for name, found in again.items()} == {
            name: found.st_ino for name, found in made.items()
        }

"""The quality report: what is in it, where things stand, and that nothing private ever is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from celora.cli import application
from celora.cli.failures import run
from celora.data_words import histogram_facts, quality_facts, quality_warnings
from tests.data_samples import made, run_python, write
from tests.data_tokenizers import make_chat_tokenizer, make_tokenizer
from tests.unit.test_quality_private import PLANTED
from training_data import prepare as preparing
from training_data.quality.look import Quality
from training_data.validate import Report, validate
from training_data.watch import PreparationStopped

_WORDS = """garden river mountain teacher engine winter letter market doctor bottle window kitchen
 village painter soldier captain machine pocket basket candle hammer ladder blanket carpet chimney
 orchard harbour lantern meadow pencil station ticket umbrella waiter farmer sailor tailor baker"""
_DEEDS = """finds paints carries remembers builds follows answers watches repairs sells buys draws
 forgets mentions borrows cleans describes discovers empties finishes guards hides ignores joins"""
NOUNS, VERBS = _WORDS.split(), _DEEDS.split()


def sentence(chance: random.Random, pieces: int = 6) -> str:
    said = (
        f"{chance.choice(NOUNS)} {chance.choice(VERBS)} the {chance.choice(NOUNS)}"
        for _ in range(pieces)
    )
    return " and ".join(said) + f" in {chance.randrange(10**6)} days"


def rows(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [{"instruction": sentence(chance), "output": sentence(chance, 5)} for _ in range(count)]


def quality(path: Path, **fields: Any) -> dict[str, Any]:
    report = validate(str(path), quality=True, **fields)
    assert report.ok, report
    found: dict[str, Any] = report.verdict["quality"]
    return found


def codes(found: dict[str, Any]) -> list[str]:
    return [one["code"] for one in found["findings"]]


def as_text(report: Report) -> str:
    """All that any face shows."""
    verdict = report.verdict
    told = [*quality_facts(verdict["quality"]), *histogram_facts(verdict["length_histogram"])]
    return "\n".join(
        [
            json.dumps(report.record(), ensure_ascii=False),
            *map(" ".join, told),
            *quality_warnings(verdict["quality"]),
        ]
    )


def test_fine_data_has_no_findings(tmp_path: Path) -> None:
    found = quality(write(tmp_path / "rows.jsonl", rows(300)))
    assert found["findings"] == []
    assert found["rows"] == found["of_rows"] == 300
    assert found["duplicates"]["compared"] == 300
    assert found["language"]["languages"][0]["name"] == "en"
    assert found["language"]["scripts"] == [{"name": "latin", "rows": 300}]
    assert dict(quality_facts(found))["keys, personal data"] == "none found"


def test_real_rows(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "gsm8k-train.jsonl").read_text().splitlines()[:800]
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("\n".join([*lines, lines[3].replace("the", "a", 1)]) + "\n")
    found = quality(
        data,
        columns={"instruction": "question", "output": "answer"},
        eval_dataset=str(shared_data / "gsm8k-test.jsonl"),
    )
    assert found["leakage"]["between"] == "eval_dataset"
    assert found["duplicates"]["near"] == 1
    pair = found["duplicates"]["examples"][0]
    assert {pair["row"]["line"], pair["like"]["line"]} == {4, 801}
    assert codes(found) == []


def test_nothing_private_is_ever_shown(tmp_path: Path) -> None:
    """Not in text, JSON or the row shown, whichever part of whichever row holds it."""
    data = rows(200)
    for number, secret in enumerate(PLANTED.values()):
        data[number]["output"] = f"here: {secret}\n"
        data[number + 50]["instruction"] += f" {secret}"
    data += [{"instruction": f"who? {n}", "output": PLANTED["email"]} for n in range(30)]
    path = write(tmp_path / "rows.jsonl", data)
    base = str(make_tokenizer(tmp_path / "base"))
    report = validate(str(path), quality=True, tokenizer_path=base)
    assert report.ok
    text = as_text(report)
    assert not [kind for kind, secret in PLANTED.items() if secret in text]
    assert not [kind for kind, secret in PLANTED.items() if json.dumps(secret)[1:-1] in text]
    assert "here: [" in report.verdict["example"]["text_with_mask"]
    found = {one["kind"]: one for one in report.verdict["quality"]["private"]}
    assert {kind: one["rows"] for kind, one in found.items()} == dict.fromkeys(PLANTED, 2) | {
        "email": 32
    }
    places = [place["line"] for place in found["card"]["places"]]
    card = list(PLANTED).index("card")
    assert places == [card + 1, card + 51]
    assert len(found["email"]["places"]) == 10
    warned = "\n".join(quality_warnings(report.verdict["quality"]))
    assert "2 rows hold what looks like an AWS access key" in warned
    assert "32 rows hold what looks like an e-mail address" in warned


def test_a_labels_name_and_a_rows_problem_hide_it_too(tmp_path: Path) -> None:
    data: list[dict[str, Any]] = [
        {"prompt": f"whose is ticket {n} of the {NOUNS[n % 10]}?", "completion": label}
        for n in range(200)
        for label in (PLANTED["email"] if n % 4 else "nobody",)
    ]
    found = quality(write(tmp_path / "rows.jsonl", data))
    assert [one["label"] for one in found["labels"]["listed"]] == ["[e-mail address]", "nobody"]
    data.append({"prompt": "card?", "completion": 4111111111111111})
    report = validate(str(write(tmp_path / "bad.jsonl", data)), quality=True)
    assert report.problem_count == 1
    assert "4111111111111111" not in json.dumps(report.record())
    assert report.verdict["quality"]["rows"] == 200


def test_copies_and_leaks_are_counted_with_their_lines(tmp_path: Path) -> None:
    train, evaluation = rows(300), rows(60, seed=2)
    train += [train[0], evaluation[0]]  # exact: of a training row, of an evaluation row
    train.append({**evaluation[1], "output": "something else, which nobody has said so far"})
    train.append({**evaluation[2], "output": evaluation[2]["output"] + " or so"})
    train.append({**train[5], "instruction": train[5]["instruction"].replace(" and", " or", 1)})
    found = quality(
        write(tmp_path / "train.jsonl", train),
        eval_dataset=str(write(tmp_path / "evaluation.jsonl", evaluation)),
    )
    leaked, repeated = found["leakage"], found["duplicates"]
    assert (leaked["exact"], leaked["same_prompt"], leaked["near"]) == (1, 2, 1)
    assert leaked["examples"][0]["row"] == {"data": "eval_dataset", "file": "", "line": 3}
    assert leaked["examples"][0]["like"] == {"data": "dataset", "file": "", "line": 304}
    assert repeated["exact"] == 1
    assert repeated["near"] == 2
    told = dict(quality_facts(found))
    assert "as evaluation data line 3 and line 304" in told["in evaluation data too"]
    assert {"leakage_exact", "leakage_same_prompt", "leakage_near"} <= set(codes(found))


def test_the_splits_own_leaks(tmp_path: Path) -> None:
    chance = random.Random(4)
    data = [
        {"prompt": f"{one['instruction']} {n}", "completion": one["output"]}
        for one in rows(100)
        for n in chance.sample(range(100), 4)
    ]
    found = quality(write(tmp_path / "rows.jsonl", data), validation_fraction=0.2)
    assert found["leakage"]["between"] == "split"
    assert found["leakage"]["near"] > 50
    assert found["duplicates"]["groups"] == pytest.approx(100, abs=3)
    assert {"leakage_near", "duplicates_near"} <= set(codes(found))


def test_answers_that_teach_little(tmp_path: Path) -> None:
    data = rows(100)
    for number, answer in enumerate(["...", "N/A", "none", "?!", "Yes", "42", "机器", " ok \n"]):
        data[number]["output"] = answer
    data[20]["output"] = "it cost 5 â€¦ CafÃ© \ufffd"
    found = quality(write(tmp_path / "rows.jsonl", data))
    lines = {
        name: sorted(place["line"] for place in noted["places"])
        for name, noted in found["answers"].items()
    }
    assert lines == {"placeholder": [1, 2, 3], "empty": [4], "one_word": [5, 6, 7, 8]}
    assert found["broken_text"]["places"][0]["line"] == 21
    assert {"answers_empty", "answers_placeholder", "broken_text"} <= set(codes(found))
    assert "answers_one_word" not in codes(found)  # four in a hundred are none to speak of


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({"good": 150, "bad": 140}, None),
        ({"good": 280, "bad": 12}, "labels_uneven"),
        ({"good": 60, "bad": 60, "neither": 4}, "labels_few"),
    ],
)
def test_labels(tmp_path: Path, counts: dict[str, int], code: str | None) -> None:
    chance = random.Random(1)
    data = [
        {"prompt": f"how is this? {sentence(chance)}", "completion": label}
        for label, count in counts.items()
        for _ in range(count)
    ]
    found = quality(write(tmp_path / "rows.jsonl", data))
    assert {one["label"]: one["rows"] for one in found["labels"]["listed"]} == counts
    assert found["labels"]["classes"] == len(counts)
    assert codes(found) == ([code] if code else [])


def test_short_answers_that_differ_are_no_labels(tmp_path: Path) -> None:
    chance = random.Random(1)
    data = [{"prompt": sentence(chance), "completion": f"{n * 7}"} for n in range(300)]
    found = quality(write(tmp_path / "rows.jsonl", data))
    assert found["labels"] is None
    assert codes(found) == ["answers_one_word"]


def test_languages_and_scripts(tmp_path: Path) -> None:
    german = "Der Lehrer geht heute in den Garten und schreibt einen langen Brief an die Stadt"
    russian = "Учитель сегодня идёт в сад и пишет длинное письмо своему старому другу"
    data = rows(60)
    for number in range(20):
        data[number]["output"] = f"{german} {number}."
        data[number + 20]["output"] = f"{russian} {number}."
    found = quality(write(tmp_path / "rows.jsonl", data))["language"]
    assert {one["name"]: one["rows"] for one in found["languages"]} == {
        "en": 20,
        "de": 20,
        "ru": 20,
    }
    assert {one["name"]: one["rows"] for one in found["scripts"]} == {"latin": 40, "cyrillic": 20}
    assert (found["other_than_prompt"], found["with_both"]) == (40, 60)


def test_answers_in_json_are_in_no_language(tmp_path: Path) -> None:
    data = rows(30)
    for number, row in enumerate(data):
        row["output"] = json.dumps({"intent": "turn_on", "device": "lamp", "room": number})
    found = quality(write(tmp_path / "rows.jsonl", data))
    assert found["language"]["languages"] == []
    assert (found["language"]["too_short"], found["language"]["with_both"]) == (30, 0)


def test_conversations_are_compared_without_their_system_message(tmp_path: Path) -> None:
    system = {"role": "system", "content": sentence(random.Random(0), 60)}
    data = [
        {
            "messages": [
                system,
                {"role": "user", "content": one["instruction"]},
                {"role": "assistant", "content": one["output"]},
            ]
        }
        for one in rows(12)
    ]
    data[3]["messages"][-1] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": "{}"}}],
    }
    found = quality(write(tmp_path / "rows.jsonl", data))
    assert found["duplicates"]["near"] == 0
    assert found["answers"]["empty"]["rows"] == 0


def test_pairs_of_answers_are_looked_at_on_both_sides(tmp_path: Path) -> None:
    data = [
        {"prompt": one["instruction"], "chosen": one["output"], "rejected": "no"}
        for one in rows(30)
    ]
    data[4]["rejected"] = f"ask {PLANTED['email']}"
    found = quality(write(tmp_path / "rows.jsonl", data), method="dpo")
    assert [one["kind"] for one in found["private"]] == ["email"]


def test_a_file_of_several_names_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    one, two = rows(40), rows(40, seed=2)
    two[7]["output"] = f"ask {PLANTED['email']}"
    write(folder / "a.jsonl", one)
    write(folder / "b.jsonl", two)
    found = quality(folder)
    assert found["private"][0]["places"] == [{"data": "dataset", "file": "b.jsonl", "line": 8}]
    assert "b.jsonl line 8" in dict(quality_facts(found))["e-mail address"]


def test_a_broken_file_still_gives_its_problems_and_what_else_is_known(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(50))
    path.write_text(path.read_text() + "{broken\n" + json.dumps(rows(51)[50]) + "\n")
    for base in (None, str(make_tokenizer(tmp_path / "base"))):
        report = validate(str(path), quality=True, tokenizer_path=base)
        assert [problem.line for problem in report.problems] == [51]
        assert report.verdict["quality"]["rows"] == 51
    shapeless = validate(str(write(tmp_path / "none.jsonl", [{"a": 1}])), quality=True)
    assert not shapeless.ok
    assert shapeless.verdict["quality"] is None


def test_a_job_is_looked_at_in_part_and_never_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "MOST_QUALITY_ROWS", 70)
    data = rows(200)
    for number in range(60):
        data[number]["output"] = f"{PLANTED['email']} {number}"
    base = str(make_chat_tokenizer(tmp_path / "base", "chatml"))
    prepared = made(write(tmp_path / "rows.jsonl", data), base, tmp_path / "out")
    found = prepared.verdict["quality"]
    assert (found["rows"], found["of_rows"]) == (70, 200)
    assert dict(quality_facts(found))["looked at"] == "70 rows, the first of 200"
    assert found["private"][0]["rows"] == 60
    assert PLANTED["email"] not in (prepared.folder / "verdict.json").read_text()
    assert len(json.dumps(found)) < 8_000
    assert sorted(path.name for path in prepared.folder.iterdir()) == [
        "eval.arrow",
        "train.arrow",
        "verdict.json",
    ]


def test_lengths_are_shown_as_bars(tmp_path: Path) -> None:
    base = str(make_tokenizer(tmp_path / "base"))
    data = write(tmp_path / "rows.jsonl", rows(90))
    report = validate(str(data), quality=True, tokenizer_path=base)
    bins = report.verdict["length_histogram"]
    assert sum(one["rows"] for one in bins) == report.verdict["rows_train"]
    assert all(low["to"] + 1 == high["from"] for low, high in pairwise(bins))
    assert any("▇" * 30 in bar for _, bar in histogram_facts(bins))


@pytest.mark.parametrize("what", ["reading the data", "comparing rows"])
def test_it_stops_when_asked(tmp_path: Path, what: str) -> None:
    data = write(tmp_path / "rows.jsonl", rows(3000))
    doing: list[str] = []
    with pytest.raises(PreparationStopped, match=what):
        validate(
            str(data),
            quality=True,
            on_progress=lambda now, _: doing.append(now),
            should_stop=lambda: what == "reading the data" or what in doing,
        )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: str) -> tuple[int, str]:
        app = application(["validate"])
        call = ["validate", *arguments]
        code = run(lambda: app(call, prog_name="celora", standalone_mode=False))
        return code, capsys.readouterr().out

    return call


def test_the_command_tells_it_as_text_and_as_json(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    data = rows(80)
    data[5]["output"] = f"ask {PLANTED['email']} at {PLANTED['aws_access_key']}"
    path = str(write(tmp_path / "rows.jsonl", data))
    code, text = command(path)
    assert code == 0  # advice, not an error
    assert "AWS access key" in text
    assert "1 in 1 row: line 6" in text
    assert "warning: 1 row holds what looks like an AWS access key; take it out" in text
    code, record = command(path, "--json")
    assert code == 0
    assert json.loads(record)["quality"]["version"] == 1
    for told in (text, record):
        assert PLANTED["email"] not in told
        assert PLANTED["aws_access_key"] not in told


def test_it_works_where_the_trainer_is_not_installed(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows(50))
    code = """
import sys
for name in ("torch", "datasets", "transformers", "peft", "trl"):
    sys.modules[name] = None
from training_data.validate import validate
print(validate(sys.argv[1], quality=True).verdict["quality"]["rows"], "pandas" in sys.modules)
"""
    assert run_python(code, str(data)) == "50 False\n"


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows(2000))
    code = """
import resource, sys
from models.errors import SetupError
from training_data.quality import buckets
from training_data.validate import validate
buckets._FLUSH_RECORDS = 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    validate(sys.argv[1], quality=True)
except SetupError as error:
    print(error)
"""
    assert "free space" in run_python(code, str(data))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_however_many_rows(tmp_path: Path) -> None:
    code = """
import re, sys
from pathlib import Path
from training_data.validate import validate
validate(sys.argv[1], quality=True)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    peaks: list[int] = []
    for count in (100_000, 400_000):
        data = tmp_path / f"{count}.jsonl"
        with data.open("w") as stream:
            for number in range(count):
                words = " ".join(NOUNS[number % (n + 5) % 10] for n in range(6))
                text = f"{number} {words} {number * 7919 % 104729}"
                stream.write(json.dumps({"prompt": text, "completion": f"{words} {number}"}) + "\n")
        peaks.append(int(run_python(code, str(data))) // 1024)
    assert peaks[1] < 400
    assert peaks[1] - peaks[0] < 60


def test_quality_leaves_no_files(tmp_path: Path) -> None:
    from models.spec import parse_spec
    from training_data.problems import Problems
    from training_data.rows import Rows
    from training_data.watch import Watch

    data = write(tmp_path / "rows.jsonl", rows(30))
    spec = parse_spec({"base_model": "none", "dataset": str(data)})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    watch = Watch()
    read = Rows(spec, watch=watch, problems=Problems(), scratch=scratch)
    with Quality(read, scratch, watch) as look:
        assert len(list(look.watched(read.kept()))) == 30
        assert (scratch / "quality").exists()
    assert list(scratch.iterdir()) == []

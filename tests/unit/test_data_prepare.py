"""Preparing whole data sets: what is written, counted, said and refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from models import store
from models.errors import BaseModelError, DataError, InputError
from models.spec import JobSpec
from tests.data_tokenizers import make_chat_tokenizer, make_tokenizer
from tests.environment import variables
from training_data.files import DataFile, held_still
from training_data.prepare import (
    PreparationStopped,
    Prepared,
    find_cached,
    input_digest,
    prepare,
)

GSM8K = {"columns": {"instruction": "question", "output": "answer"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("base")))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row(n) for n in range(200)])


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"what is {number}?\n", "completion": f"the number {number}"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def made(dataset: Path, base: str, folder: Path, **fields: Any) -> Prepared:
    spec = JobSpec(base_model="base", dataset=str(dataset), **fields)
    return prepare(spec, tokenizer_path=base, scratch=folder)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / name).open("rb") as stream:
        found: list[dict[str, Any]] = pa.ipc.open_stream(stream).read_all().to_pylist()
    return found


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


def served(store_url: str, base: str, folder: Path, **fields: Any) -> dict[str, Any]:
    spec = JobSpec(base_model="base", dataset=store_url, **fields)
    digest = input_digest(spec, base)
    prepared = prepare(spec, tokenizer_path=base, scratch=folder)
    assert prepared.digest == digest
    return prepared.verdict


def test_data_behind_urls(base: str, tmp_path: Path) -> None:
    records = [row(n) for n in range(300)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    files = {"rows.parquet": sink.getvalue(), "rows.jsonl.gz": gzip.compress(write_bytes(records))}
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe(f"/celora-prepare/{name}", content)
        (tmp_path / "www").mkdir(exist_ok=True)
        (tmp_path / "www" / name).write_bytes(content)
    handler = partial(_Quiet, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            for place in ("memory://celora-prepare", address):
                for name, content in files.items():
                    folder = tmp_path / f"{len(place)}-{name}"
                    verdict = served(f"{place}/{name}", base, folder)
                    assert verdict["rows_read"] == 300
                    assert verdict["digests"]["data"] == hashlib.sha256(content).hexdigest()
            with pytest.raises(InputError, match="no such file"):
                served(f"{address}/missing.jsonl", base, tmp_path / "missing")
        finally:
            server.shutdown()
            memory.rm("/celora-prepare", recursive=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def write_bytes(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


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


def test_the_digest_is_known_before_and_follows_what_matters(
    rows: Path, base: str, tmp_path: Path
) -> None:
    spec = JobSpec(base_model="base", dataset=str(rows))
    digest = input_digest(spec, base)
    assert made(rows, base, tmp_path / "out").digest == digest
    assert input_digest(spec.model_copy(update={"learning_rate": 0.5, "rank": 4}), base) == digest
    for change in ({"max_sequence_length": 64}, {"loss_on": "all"}, {"packing": "on"}):
        assert input_digest(spec.model_copy(update=change), base) != digest
    other = str(make_tokenizer(tmp_path / "other", eos="<end>"))
    assert input_digest(spec, other) != digest
    with rows.open("a") as stream:
        stream.write(json.dumps(row(999)) + "\n")
    changed = input_digest(spec, base)
    assert changed != digest
    assert made(rows, base, tmp_path / "again").digest == changed


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "csv"])
def test_every_reader_digests_the_whole_file(base: str, tmp_path: Path, suffix: str) -> None:
    records = [row(n) for n in range(30)]
    data = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), data)
    elif suffix == "csv":
        lines = [f'"{record["prompt"]}",{record["completion"]}\n' for record in records]
        data.write_text("prompt,completion\n" + "".join(lines))
    elif suffix == "json":
        data.write_text(json.dumps(records) + " " * 200_000)  # more than any parser needs
    else:
        write(data, records)
    verdict = made(data, base, tmp_path / "out").verdict
    assert verdict["rows_read"] == 30
    assert verdict["digests"]["data"] == hashlib.sha256(data.read_bytes()).hexdigest()


def test_a_file_that_changes_under_a_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row(1)]), path)
    file = DataFile("rows.parquet", str(path))

    def read_and_change() -> None:
        with held_still(file, tmp_path, lambda: None), path.open("ab") as stream:
            stream.write(b"more")

    with pytest.raises(InputError, match="was changed while it was read"):
        read_and_change()


def test_prepared_data_is_found_once_it_is_whole(rows: Path, base: str, tmp_path: Path) -> None:
    with variables(CELORA_ARTIFACTS=str(tmp_path / "store")):
        prepared = made(rows, base, tmp_path / "out")
        assert find_cached(prepared.digest) is None
        url = store.prepared_url(prepared.digest)
        store.upload(prepared.folder, url)
        assert find_cached(prepared.digest) == url
        (Path(url) / "verdict.json").unlink()
        assert find_cached(prepared.digest) is None


def test_a_stop_is_looked_for_all_the_time(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [row(n) for n in range(6000)])
    spec = JobSpec(base_model="base", dataset=str(data), packing="on")
    looks: list[float] = []
    told: list[tuple[str, int]] = []

    def look() -> bool:
        looks.append(time.process_time())
        return False

    prepare(
        spec,
        tokenizer_path=base,
        scratch=tmp_path / "out",
        should_stop=look,
        on_progress=lambda what, count: told.append((what, count)),
    )
    # In CPU time, which a busy machine does not stretch.
    assert max(after - before for before, after in pairwise(looks)) < 0.5
    assert list(dict.fromkeys(what for what, _ in told)) == [
        "loading the tokenizer",
        "tokenising",
        "packing",
    ]
    assert max(count for _, count in told) > 5000


@pytest.mark.parametrize("what", ["loading the tokenizer", "tokenising", "packing"])
def test_it_stops_when_asked(rows: Path, base: str, tmp_path: Path, what: str) -> None:
    now = threading.local()

    def note(doing: str, _count: int) -> None:
        now.doing = doing

    spec = JobSpec(base_model="base", dataset=str(rows), packing="on")
    with pytest.raises(PreparationStopped):
        prepare(
            spec,
            tokenizer_path=base,
            scratch=tmp_path / "out",
            on_progress=note,
            should_stop=lambda: _next(now, what),
        )
    assert not (tmp_path / "out" / "verdict.json").exists()
    with pytest.raises(PreparationStopped):
        input_digest(spec, base, should_stop=lambda: True)


def _next(now: threading.local, what: str) -> bool:
    """The look is before the word: stop at the first look of the part after the one before."""
    parts = ["", "loading the tokenizer", "tokenising", "packing"]
    return getattr(now, "doing", "") == parts[parts.index(what) - 1]


def test_the_callers_check_can_forbid_a_place(rows: Path, base: str, tmp_path: Path) -> None:
    def forbid(place: str) -> None:
        raise InputError("not yours", where=place)

    spec = JobSpec(base_model="base", dataset=str(rows))
    with pytest.raises(InputError, match="not yours"):
        prepare(spec, tokenizer_path=base, scratch=tmp_path / "out", source_check=forbid)


def test_a_line_of_megabytes_is_prepared_in_little_memory(base: str, tmp_path: Path) -> None:
    import tracemalloc

    words = "the quick brown fox " * 200_000  # 4 MB
    data = write(tmp_path / "rows.jsonl", [{"text": f"{n} {words}"} for n in range(3)])
    tracemalloc.start()
    try:
        verdict = made(data, base, tmp_path / "out", max_sequence_length=64).verdict
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdict["truncated"] == 3
    assert peak < 60_000_000


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_told_as_such(rows: Path, base: str, tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from models.errors import SetupError
from models.spec import JobSpec
from training_data.prepare import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
spec = JobSpec(base_model="base", dataset=sys.argv[2])
try:
    prepare(spec, tokenizer_path=sys.argv[1], scratch=Path(sys.argv[3]))
except SetupError as error:
    print(error)
"""
    made(rows, base, tmp_path / "before")  # the tokenizer is frozen, which takes more than that
    assert "free space" in run_python(code, base, str(rows), str(tmp_path / "out"))


def test_importing_is_light() -> None:
    heavy = "torch transformers datasets pyarrow tokenizers numpy pandas fsspec jinja2"
    run_python(
        "import sys, training_data.prepare, training_data.validate;"
        f"loaded = set('{heavy}'.split()) & set(sys.modules); assert not loaded, loaded"
    )


def test_it_works_where_the_trainer_is_not_installed(tmp_path: Path) -> None:
    """And loads neither pandas nor, for plain rows, transformers into its process."""
    chat = make_chat_tokenizer(tmp_path / "chat", "chatml")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "chat.jsonl", [{"messages": turns}, {"messages": [*turns, *turns]}])
    write(tmp_path / "plain.jsonl", [row(1), row(2)])
    code = """
import sys
for name in ("torch", "datasets", "peft", "trl", "accelerate"):
    sys.modules[name] = None
from pathlib import Path
from models.spec import JobSpec
from training_data.prepare import prepare
base, folder = sys.argv[1], Path(sys.argv[2])
for name in ("plain", "chat"):
    spec = JobSpec(base_model="base", dataset=str(folder / f"{name}.jsonl"), packing="on")
    prepare(spec, tokenizer_path=base, scratch=folder / name)
    print("pandas" in sys.modules, "transformers" in sys.modules)
"""
    assert run_python(code, str(chat), str(tmp_path)) == "False False\nFalse True\n"


@pytest.mark.slow
def test_memory_is_flat_and_low(base: str, tmp_path: Path) -> None:
    from benchmarks.preparation import write_rows

    code = """
import re, sys
from pathlib import Path
from models.spec import JobSpec
from training_data.prepare import prepare
spec = JobSpec(base_model="base", dataset=sys.argv[2], packing="on")
prepare(spec, tokenizer_path=sys.argv[1], scratch=Path(sys.argv[2] + ".out"))
# Not ru_maxrss, which keeps what the parent had before the exec.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    peaks: list[int] = []
    for count in (20_000, 80_000):
        data = tmp_path / f"{count}.jsonl"
        write_rows(data, count, seed=1)
        peaks.append(int(run_python(code, base, str(data))) // 1024)
    assert peaks[1] < 250
    assert peaks[1] - peaks[0] < 30

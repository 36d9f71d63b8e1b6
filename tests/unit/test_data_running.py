"""How preparing behaves as a process: stops, checks, memory, full disks, what it imports."""

from __future__ import annotations

import threading
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.preparation import write_rows
from models.errors import InputError
from models.spec import JobSpec
from tests.data_samples import made, row, run_python, write
from tests.data_tokenizers import make_chat_tokenizer, make_tokenizer
from training_data.prepare import PreparationStopped, input_digest, prepare


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("base")))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row(n) for n in range(200)])


def test_a_stop_is_looked_for_all_the_time(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [row(n) for n in range(6000)])
    spec = JobSpec(base_model="base", dataset=str(data), packing="on")
    looks: list[float] = []
    told: list[tuple[str, int]] = []

    def look() -> bool:
        looks.append(time.thread_time())
        return False

    prepare(
        spec,
        tokenizer_path=base,
        scratch=tmp_path / "out",
        should_stop=look,
        on_progress=lambda what, count: told.append((what, count)),
    )
    # In this thread's CPU time, which neither a busy machine nor another thread stretches.
    assert max(after - before for before, after in pairwise(looks)) < 2
    assert list(dict.fromkeys(what for what, _ in told)) == [
        "loading the tokenizer",
        "tokenising",
        "packing",
        "comparing rows",
    ]
    assert max(count for _, count in told) > 5000


_PARTS = ["loading the tokenizer", "tokenising", "packing", "comparing rows"]


@pytest.mark.parametrize("what", _PARTS)
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
    parts = ["", *_PARTS]
    return getattr(now, "doing", "") == parts[parts.index(what) - 1]


def test_the_callers_check_can_forbid_a_place(rows: Path, base: str, tmp_path: Path) -> None:
    def forbid(place: str) -> None:
        raise InputError("not yours", where=place)

    spec = JobSpec(base_model="base", dataset=str(rows))
    with pytest.raises(InputError, match="not yours"):
        prepare(spec, tokenizer_path=base, scratch=tmp_path / "out", source_check=forbid)


def test_a_line_of_megabytes_is_prepared_in_little_memory(base: str, tmp_path: Path) -> None:
    words = "the quick brown fox " * 200_000  # 4 MB
    data = write(tmp_path / "rows.jsonl", [{"text": f"{n} {words}"} for n in range(3)])
    made(write(tmp_path / "one.jsonl", [{"text": words[:400]}]), base, tmp_path / "libraries")
    tracemalloc.start()
    try:
        verdict = made(data, base, tmp_path / "out", max_sequence_length=64).verdict
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdict["truncated"] == 3
    assert peak < 60_000_000


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
    heavy = (
        "torch transformers datasets pyarrow tokenizers numpy pandas fsspec jinja2 rensa py3langid"
    )
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

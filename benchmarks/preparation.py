"""Preparation of instruction rows: ours beside `datasets.map` with two processes.

    python -m benchmarks.preparation [ROWS]

Both read the same JSON Lines file, lay the rows out alike, tokenise them with the same tokenizer
and make labels from offsets. Each runs in a process of its own, taking turns; memory is that of
the process with all it started, sampled. A file four times as large shows that it stays flat.
Exits 1 when an aim is missed: faster than `datasets.map`, and under 250 MB at either size.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROWS = 200_000
TURNS = 2
BASELINE_PROCESSES = 2
MOST_BYTES = 250_000_000
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    rows: int
    file_bytes: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True)
class Result:
    ours: Measured
    baseline: Measured
    ours_fourfold: Measured

    @property
    def ratio(self) -> float:
        """Our rows per second over the baseline's."""
        return self.ours.rows_per_second / self.baseline.rows_per_second

    @property
    def aims_met(self) -> bool:
        peak = max(self.ours.peak_rss_bytes, self.ours_fourfold.peak_rss_bytes)
        return self.ratio > 1 and peak < MOST_BYTES


def run(rows: int = ROWS, *, turns: int = TURNS) -> Result:
    """Measure; of each side the fastest turn counts."""
    with tempfile.TemporaryDirectory(prefix="celora-bench-") as name:
        folder = Path(name)
        small, large = folder / "rows.jsonl", folder / "fourfold.jsonl"
        write_rows(small, rows, seed=1)
        make_tokenizer(small, folder / "base")
        ours, baseline = [], []
        for _ in range(turns):
            ours.append(_measure("prepare", small, rows, folder))
            baseline.append(_measure("baseline", small, rows, folder))
        write_rows(large, 4 * rows, seed=2)
        fourfold = _measure("prepare", large, 4 * rows, folder)
    return Result(_fastest(ours), _fastest(baseline), fourfold)


def _fastest(turns: list[Measured]) -> Measured:
    return min(turns, key=lambda measured: measured.seconds)


def write_rows(path: Path, rows: int, *, seed: int) -> None:
    """Instruction rows of about 770 bytes, no two alike, in a made-up language.

    Its words are as unevenly frequent as those of a real one, which is what a tokenizer's speed
    depends on.
    """
    chance = random.Random(seed)
    consonants = ["b", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "pl"]
    parts = [consonant + vowel for consonant in consonants for vowel in "aeiou"]
    words = ["".join(chance.choices(parts, k=chance.randint(1, 4))) for _ in range(8000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    # Drawing rows word by word would take longer than preparing them.
    sentences = [
        " ".join(chance.choices(words, weights, k=chance.randint(6, 16))).capitalize() + "."
        for _ in range(20_000)
    ]

    def say(least: int, most: int) -> str:
        return " ".join(chance.choices(sentences, k=chance.randint(least, most)))

    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            given = say(1, 2) if number % 5 < 2 else ""  # noqa: PLR2004 - two rows in five
            row = {"instruction": say(1, 3), "input": given, "output": f"{number}: {say(3, 11)}"}
            stream.write(json.dumps(row) + "\n")


def make_tokenizer(data: Path, folder: Path) -> None:
    """A byte-level BPE of 8,000 tokens, trained on the data, as a base model's folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with data.open(encoding="utf-8") as stream:
        some = [" ".join(json.loads(next(stream)).values()) for _ in range(5000)]
    tokenizer.train_from_iterator(some, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def _measure(side: str, data: Path, rows: int, folder: Path) -> Measured:
    """One side in a fresh process, with nothing cached from an earlier turn."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = [sys.executable, "-m", "benchmarks.preparation", side, str(data), str(folder)]
        environment = os.environ | {
            "CELORA_HOME": f"{own}/home",
            "HF_DATASETS_CACHE": f"{own}/cache",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TMPDIR": own,
        }
        peak, cpu_before, started = 0, _cpu_of_children(), time.monotonic()
        with subprocess.Popen(command, env=environment) as process:
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the side {side!r} failed")
    cpu = _cpu_of_children() - cpu_before
    return Measured(rows, data.stat().st_size, seconds, cpu, peak)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(pid: int) -> int:
    """Resident bytes of a process and everything it started, shared pages counted each time."""
    import psutil

    try:
        top = psutil.Process(pid)
        return sum(int(p.memory_info().rss) for p in [top, *top.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def prepare_side(data: Path, base: Path) -> None:
    """All of what a job's preprocessing does, from the file to train.arrow and the verdict."""
    from models.spec import JobSpec
    from training_data.prepare import prepare

    spec = JobSpec(base_model="bench", dataset=str(data), packing="off")
    with tempfile.TemporaryDirectory() as scratch:
        prepare(spec, tokenizer_path=str(base), scratch=Path(scratch))


def baseline_side(data: Path, base: Path) -> None:
    """The tokens and labels alone, as most people make them, with a fast tokenizer in batches."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = [
            f"### Instruction:\n{instruction}\n\n"
            + (f"### Input:\n{given}\n\n" if given else "")
            + "### Response:\n"
            for instruction, given in zip(batch["instruction"], batch["input"], strict=True)
        ]
        texts = [
            prompt + output + tokenizer.eos_token
            for prompt, output in zip(prompts, batch["output"], strict=True)
        ]
        encoded = tokenizer(texts, truncation=True, max_length=2048)
        labels = []
        for number, (ids, prompt) in enumerate(zip(encoded["input_ids"], prompts, strict=True)):
            start = encoded.char_to_token(number, len(prompt))
            labels.append([-100] * start + ids[start:])
        return {"input_ids": encoded["input_ids"], "labels": labels}

    rows = datasets.load_dataset("json", data_files=str(data), split="train")
    rows.map(encode, batched=True, num_proc=BASELINE_PROCESSES, remove_columns=rows.column_names)


def show(result: Result) -> None:
    print(f"{'':27}{'rows':>8}{'MB':>6}{'seconds':>9}{'CPU s':>8}{'rows/s':>8}{'peak MB':>9}")
    for name, measured in (
        ("celora", result.ours),
        (f"datasets.map, {BASELINE_PROCESSES} processes", result.baseline),
        ("celora, four times the rows", result.ours_fourfold),
    ):
        print(
            f"{name:27}{measured.rows:>8}{measured.file_bytes / 1e6:>6.0f}"
            f"{measured.seconds:>9.1f}{measured.cpu_seconds:>8.1f}"
            f"{measured.rows_per_second:>8.0f}{measured.peak_rss_bytes / 1e6:>9.0f}"
        )
    print(f"celora / datasets.map: {result.ratio:.2f} times the rows per second")
    print(json.dumps(asdict(result)))


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in {"prepare", "baseline"}:
        side = prepare_side if arguments[0] == "prepare" else baseline_side
        side(Path(arguments[1]), Path(arguments[2]) / "base")
        return 0
    result = run(int(arguments[0]) if arguments else ROWS)
    show(result)
    return 0 if result.aims_met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

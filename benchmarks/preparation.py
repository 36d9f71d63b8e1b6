"""Preparation of instruction rows: ours beside `datasets.map` with two processes.

    python -m benchmarks.preparation [ROWS]

Both read the same JSON Lines file, lay the rows out alike, tokenise them with the same tokenizer
and make labels from offsets; each runs in a process of its own, whose memory (its children's
included) is sampled. A file four times as large shows whether memory stays flat.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
BASELINE_PROCESSES = 2


@dataclass(frozen=True)
class Measured:
    rows: int
    file_bytes: int
    seconds: float
    rows_per_second: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Result:
    ours: Measured
    baseline: Measured
    ours_fourfold: Measured

    @property
    def ratio(self) -> float:
        """Our rows per second over the baseline's."""
        return self.ours.rows_per_second / self.baseline.rows_per_second


def run(rows: int = 200_000, *, repeats: int = 1) -> Result:
    """Measure; of `repeats` alternating runs the fastest of each side counts."""
    with tempfile.TemporaryDirectory(prefix="celora-bench-") as name:
        folder = Path(name)
        small, large = folder / "rows.jsonl", folder / "fourfold.jsonl"
        write_rows(small, rows, seed=1)
        write_rows(large, 4 * rows, seed=2)
        make_tokenizer(small, folder / "base")
        ours, baseline = [], []
        for _ in range(repeats):
            ours.append(_measure("prepare", small, rows, folder))
            baseline.append(_measure("baseline", small, rows, folder))
        fourfold = _measure("prepare", large, 4 * rows, folder)
        return Result(_fastest(ours), _fastest(baseline), fourfold)


def _fastest(runs: list[Measured]) -> Measured:
    return min(runs, key=lambda measured: measured.seconds)


def write_rows(path: Path, rows: int, *, seed: int) -> None:
    """Instruction rows of about 770 bytes in words of a made-up language, no two alike."""
    chance = random.Random(seed)
    parts = [
        a + b
        for a in [
            "b",
            "c",
            "d",
            "f",
            "g",
            "h",
            "l",
            "m",
            "n",
            "p",
            "r",
            "s",
            "t",
            "v",
            "w",
            "st",
            "tr",
            "pl",
        ]
        for b in "aeiou"
    ]
    words = ["".join(chance.choices(parts, k=chance.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / (rank + 5) for rank in range(len(words))]
    # Drawing words one by one would take longer than what is measured: sentences are drawn from.
    sentences = [
        " ".join(chance.choices(words, weights, k=chance.randint(6, 16))).capitalize() + "."
        for _ in range(20_000)
    ]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {
                "instruction": " ".join(chance.choices(sentences, k=chance.randint(1, 3))),
                "input": chance.choice(sentences) if chance.random() < 0.4 else "",  # noqa: PLR2004
                "output": f"{number}: "
                + " ".join(chance.choices(sentences, k=chance.randint(3, 11))),
            }
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
        texts = [
            " ".join(json.loads(line).values())
            for line, _ in zip(stream, range(5000), strict=False)
        ]
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def _measure(side: str, data: Path, rows: int, folder: Path) -> Measured:
    """Run one side in a process of its own; its time from start to end, and its memory's peak."""
    command = [sys.executable, "-m", "benchmarks.preparation", side, str(data), str(folder)]
    environment = os.environ | {
        "CELORA_HOME": str(folder / "home"),
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    started = time.monotonic()
    peak = 0
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the side {side!r} failed")
    return Measured(rows, data.stat().st_size, seconds, rows / seconds, peak)


def _memory(pid: int) -> int:
    """Resident bytes of a process and everything it started."""
    import psutil

    try:
        top = psutil.Process(pid)
        return sum(int(p.memory_info().rss) for p in [top, *top.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def prepare_side(data: Path, folder: Path) -> None:
    from models.spec import JobSpec
    from training_data.prepare import prepare

    spec = JobSpec(base_model="bench", dataset=str(data), packing="off")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        prepare(spec, tokenizer_path=str(folder / "base"), scratch=Path(scratch))


def baseline_side(data: Path, folder: Path) -> None:
    """The same work as most people write it, with a fast tokenizer in batches."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")

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


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] in {"prepare", "baseline"}:
        side = prepare_side if arguments[0] == "prepare" else baseline_side
        side(Path(arguments[1]), Path(arguments[2]))
        return
    result = run(int(arguments[0]) if arguments else 200_000)
    print(f"{'':24}{'rows':>9}{'MB':>7}{'seconds':>9}{'rows/s':>9}{'peak MB':>9}")
    for name, measured in (
        ("celora", result.ours),
        (f"datasets.map, {BASELINE_PROCESSES} processes", result.baseline),
        ("celora, four times that", result.ours_fourfold),
    ):
        print(
            f"{name:24}{measured.rows:>9}{measured.file_bytes / 1e6:>7.0f}{measured.seconds:>9.1f}"
            f"{measured.rows_per_second:>9.0f}{measured.peak_rss_bytes / 1e6:>9.0f}"
        )
    print(f"celora / datasets.map: {result.ratio:.2f} times the rows per second")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1:])

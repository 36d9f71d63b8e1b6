"""Data quality: the whole report on a file of 1 GB, beside reading it and beside rensa's own way.

    python -m benchmarks.quality [ROWS]

ROWS (1,300,000) rows of about 770 bytes, one in fifty a near duplicate of an earlier one. On the
first 200,000: reading and validating alone, the full report, and rensa's streaming deduplicator
over word triples in one process's memory, which finds near duplicates and nothing else. On all:
the full report. Each runs in a process of its own; memory is the kernel's high-water mark.
Exits 1 when an aim is missed: all under 1 GB of memory, and at least 95 % of the planted near
duplicates found.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.preparation import write_rows

ROWS, FEW_ROWS = 1_300_000, 200_000
PLANTED_EVERY = 50
MOST_BYTES = 1_000_000_000
LEAST_FOUND = 0.95
_CHANGED_WORDS = 2  # of 50 to 170: alike to 0.85 or more


@dataclass(frozen=True)
class Measured:
    rows: int
    file_bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    near: int | None

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True)
class Result:
    reading: Measured
    few: Measured
    rensa: Measured
    all: Measured

    @property
    def found(self) -> float:
        return (self.all.near or 0) / (self.all.rows // PLANTED_EVERY)

    @property
    def aims_met(self) -> bool:
        return self.all.peak_bytes < MOST_BYTES and self.found >= LEAST_FOUND


def run(rows: int = ROWS) -> Result:
    with tempfile.TemporaryDirectory(prefix="celora-bench-") as name:
        few, all_rows = Path(name) / "few.jsonl", Path(name) / "all.jsonl"
        some = min(FEW_ROWS, rows)
        write_planted(few, some)
        reading, report, rensa = (
            _measure(side, few, some) for side in ("reading", "quality", "rensa")
        )
        few.unlink()
        write_planted(all_rows, rows)
        return Result(reading, report, rensa, _measure("quality", all_rows, rows))


def write_planted(path: Path, rows: int) -> None:
    """Instruction rows; each fiftieth is an earlier one with a few words changed."""
    chance = random.Random(rows)
    plain = path.with_suffix(".plain")
    write_rows(plain, rows - rows // PLANTED_EVERY, seed=1)
    earlier = ""
    with plain.open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as target:
        for number, line in enumerate(source, 1):
            target.write(line)
            if number % (PLANTED_EVERY - 1) == PLANTED_EVERY // 2:
                earlier = line
            if number % (PLANTED_EVERY - 1) == 0:
                row = json.loads(earlier)
                words = row["output"].split(" ")
                for _ in range(_CHANGED_WORDS):
                    words[chance.randrange(len(words))] = "xyzzy"
                target.write(json.dumps(row | {"output": " ".join(words)}) + "\n")
    plain.unlink()


def _measure(side: str, data: Path, rows: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.quality", side, str(data)]
    started = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return Measured(rows, data.stat().st_size, time.monotonic() - started, **told)


def reading_side(data: str) -> int | None:
    from training_data.validate import validate

    validate(data)
    return None


def quality_side(data: str) -> int | None:
    from training_data.validate import validate

    near: int = validate(data, quality=True).verdict["quality"]["duplicates"]["near"]
    return near


def rensa_side(data: str) -> int | None:
    """As its documentation shows: token lists in, an index in memory."""
    from rensa import RMinHashDeduplicator

    index = RMinHashDeduplicator(threshold=0.8, num_perm=128, use_lsh=True, num_bands=16)

    def triples(line: str) -> list[str]:
        words = " ".join(json.loads(line).values()).lower().split()
        return [" ".join(words[place : place + 3]) for place in range(len(words) - 2)]

    near = 0
    batch: list[tuple[str, list[str]]] = []
    with Path(data).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            batch.append((str(number), triples(line)))
            if len(batch) == 1000:  # noqa: PLR2004 (a batch)
                near += int(index.add_pairs(batch).count(False))
                batch = []
    return near + int(index.add_pairs(batch).count(False))


def show(result: Result) -> None:
    titles = ("rows", "MB", "seconds", "CPU s", "rows/s", "MB/s", "peak MB")
    print(f"{'':33}" + "".join(f"{title:>9}" for title in titles))
    for name, measured in (
        ("reading and validating alone", result.reading),
        ("the full report", result.few),
        ("rensa's deduplicator alone", result.rensa),
        ("the full report, all rows", result.all),
    ):
        megabytes = measured.file_bytes / 1e6
        print(
            f"{name:33}{measured.rows:>9}{megabytes:>9.0f}{measured.seconds:>9.1f}"
            f"{measured.cpu_seconds:>9.1f}{measured.rows_per_second:>9.0f}"
            f"{megabytes / measured.seconds:>9.1f}{measured.peak_bytes / 1e6:>9.0f}"
        )
    print(f"near duplicates found of those planted: {result.found:.1%}")
    print(json.dumps(asdict(result)))


def main(arguments: list[str]) -> int:
    sides = {"reading": reading_side, "quality": quality_side, "rensa": rensa_side}
    if arguments and arguments[0] in sides:
        near = sides[arguments[0]](arguments[1])
        status = Path("/proc/self/status").read_text()
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024
        told = {"cpu_seconds": time.process_time(), "peak_bytes": peak, "near": near}
        print(json.dumps(told))
        return 0
    result = run(int(arguments[0]) if arguments else ROWS)
    show(result)
    return 0 if result.aims_met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

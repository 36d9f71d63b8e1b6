"""From submit until the trainer has the job, and until its first step begins, on an idle worker.

One job at a time, on a warm trainer: what is measured is the way through Postgres, dispatcher,
RabbitMQ and workers, not a queue. All processes run on this machine and read one clock.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import celora
from benchmarks.pool import Pool, free_slots, running, wait_all_done

SCRIPTED_JOBS = 40
REAL_JOBS = 12
AIM_P50 = 0.3
AIM_P95 = 1.0
AIM_FIRST_STEP = 1.5
_SCRIPT = "scripted:?steps=1&step_seconds=0&eval_seconds=0"
_WARM_UP = 2
_SECONDS = 180
# Events of a job's story and times of its result, in their order.
_PARTS = ("prepared", "placed", "claimed", "command received", "first step begun")


def run(*, scripted: int = SCRIPTED_JOBS, real: int = REAL_JOBS) -> bool:
    """Print both tables; True when all aims are met."""
    with running("latency", slots=1, preparers=1) as pool:
        script = {"base_model": _SCRIPT, "dataset": "none"}
        times = _measure(pool, [script] * (scripted + _WARM_UP))
        received = _show(f"{scripted} scripted jobs", times)
        p95 = statistics.quantiles(received, n=20)[-1]
        print(
            f"   submit → the trainer has the job: p50 {statistics.median(received):.3f} s"
            f" (aim {AIM_P50}), p95 {p95:.3f} s (aim {AIM_P95})"
        )
        began = _show(f"{real} real jobs", _measure(pool, _real_jobs(pool.root, real + _WARM_UP)))
        print(
            f"   submit → first step begun: p50 {statistics.median(began):.3f} s"
            f" (aim {AIM_FIRST_STEP}), at most {max(began):.3f} s"
        )
    return (
        statistics.median(received) <= AIM_P50
        and p95 <= AIM_P95
        and statistics.median(began) <= AIM_FIRST_STEP
    )


def _measure(pool: Pool, jobs: Iterable[dict[str, Any]]) -> list[list[float]]:
    """For each job the times since its submit, by `_PARTS`; the first two only warm up."""
    return [_one(pool, fields) for fields in jobs][_WARM_UP:]


def _one(pool: Pool, fields: dict[str, Any]) -> list[float]:
    submitted_at = time.time()
    job = celora.submit(**fields)
    wait_all_done(pool, seconds=_SECONDS)
    pool.wait_until("the slot is free", lambda: free_slots() == 1, seconds=_SECONDS)
    events, result = celora.events(job), celora.get(job).result or {}
    moments = [
        _when(events, "prepared"),
        _when(events, "placed", "train"),
        _when(events, "claimed", "train"),
        result["command_received"],
    ]
    if "first_step_began" in result:
        moments.append(result["first_step_began"])
    return [moment - submitted_at for moment in moments]


def _when(events: list[celora.Event], kind: str, beginning: str = "") -> float:
    return next(
        event.created_at.timestamp()
        for event in events
        if event.kind == kind and event.message.startswith(beginning)
    )


def _real_jobs(root: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Jobs on one base, each with data of its own: nothing is prepared already."""
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(root / "base", hidden=256, layers=2, mlp=704, vocab=2000)
    for number in range(jobs):
        rows = root / f"rows{number}.jsonl"
        rows.write_text(
            "\n".join(
                json.dumps(
                    {"instruction": f"add {n} and {number}", "output": f"{n + number} " * 30}
                )
                for n in range(120)
            )
        )
        yield {
            "base_model": str(base),
            "dataset": str(rows),
            "method": "lora",
            "rank": 4,
            "batch_size": 4,
            "gradient_accumulation": 2,
            "max_steps": 3,
            "max_sequence_length": 128,
            "evaluate": False,
        }


def _show(name: str, times: list[list[float]]) -> list[float]:
    """Print the median of each part; returns the whole of each job."""
    print(f"   {name}, the median of each part:")
    before = [0.0] * len(times)
    for part, *after in zip(_PARTS, *times, strict=False):
        seconds = statistics.median(b - a for a, b in zip(before, after, strict=True))
        print(f"      → {part:<20}{seconds:>8.3f} s")
        before = after
    return [one[-1] for one in times]


if __name__ == "__main__":
    sys.exit(0 if run() else 1)

"""`python -m benchmarks [NAME …]`: runs the benchmarks one after another and prints one report.

Each is a module of its own, run in a process of its own: what one has loaded or allocated is not
counted for the next. A benchmark that misses its aim exits non-zero, and so does the whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks import machine

BENCHMARKS = {
    "api": "HTTP: creates a second, retrieves with 100,000 jobs on record, 200 watchers",
    "fairness": "1,000 jobs of three tenants: GPU time by weight, longest wait, expected starts",
    "jobs_per_second": "jobs from submit to completed, and what one costs",
    "latency": "from submit until the trainer has the job, and until its first step",
    "placement": "finding and placing the best job, of up to a million",
    "plan_memory": "memory that `celora plan` foretells, against what real trainers take",
    "preparation": "preparation of 200,000 rows, against datasets.map with two processes",
    "quality": "the report on 1 GB of rows, against reading alone and rensa's own way in memory",
    "throughput": "tokens per second of a job, against the same recipe as a bare TRL script",
    "views": "the views of schema admin on 100,000 jobs and 10,000,000 metric rows",
    "warm_gap": "gap between two jobs, warm trainer against one process per job",
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
        return 2
    machine.show()
    missed = []
    for name in names:
        print(f"\n== {name}: {BENCHMARKS[name]}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], env=os.environ, check=False
        )
        print(f"   {time.monotonic() - started:.0f} s", flush=True)
        if done.returncode != 0:
            missed.append(name)
    if missed:
        print(f"\nmissed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

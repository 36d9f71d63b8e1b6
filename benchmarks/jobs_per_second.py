"""Jobs from submit to completed, with a scripted trainer that trains for no time at all.

What is left is what the product itself costs: CPU time by process, transactions and statements.
Two pools: one is measured, the other has a proxy before Postgres that counts statements.
"""

from __future__ import annotations

import os
import sys
import time

from sqlalchemy import text

import celora
from benchmarks import cpu_time
from benchmarks.pool import Pool, running, wait_all_done
from benchmarks.statements import StatementCounter
from models.session import transaction

SLOTS = 6
JOBS = 400
COUNTED_JOBS = 100
AIM = 25.0  # a second, on two cores
AIM_CORES = 2
_SCRIPT = "scripted:?steps=1&step_seconds=0&eval_seconds=0"
_SECONDS = 300
_SHOWN = 45


def run(*, jobs: int = JOBS, counted: int = COUNTED_JOBS) -> bool:
    """Print rate and profile; True when the rate meets the aim."""
    with running("rate", slots=SLOTS) as pool:
        _warm_up(pool)
        transactions, before = _transactions(), cpu_time.usage(pool)
        seconds = _measure(pool, jobs)
        costs = cpu_time.used(before, cpu_time.usage(pool))
        transactions = _transactions() - transactions
    statements = _statements(counted) if counted else {}
    rate = jobs / seconds
    print(f"   {jobs} jobs in {seconds:.1f} s on {SLOTS} slots: {rate:.1f} jobs/s (aim {AIM:g})")
    total = sum(costs.values())
    print(
        f"   CPU per job {1000 * total / jobs:.1f} ms: {AIM_CORES} idle cores could do"
        f" {AIM_CORES * jobs / total:.1f} jobs/s"
    )
    for name, used in costs.items():
        print(f"   {name:<16}{1000 * used / jobs:>8.1f} ms a job")
    print(f"   {transactions / jobs:.1f} transactions a job")
    if counted:
        print(f"   {sum(statements.values()) / counted:.1f} statements a job")
    if os.environ.get("BENCH_STATEMENTS"):
        for statement, times in sorted(statements.items(), key=lambda one: -one[1])[:_SHOWN]:
            print(f"   {times / counted:>7.2f}  {statement}")
    return rate >= AIM


def _warm_up(pool: Pool) -> None:
    """Every slot has its trainer, every process its connections and prepared statements."""
    _submit(pool, SLOTS * 8)


def _measure(pool: Pool, jobs: int) -> float:
    began = time.monotonic()
    return _submit(pool, jobs) - began


def _submit(pool: Pool, jobs: int) -> float:
    for _ in range(jobs):
        celora.submit(base_model=_SCRIPT, dataset="none")
    return wait_all_done(pool, seconds=_SECONDS)


def _statements(jobs: int) -> dict[str, int]:
    with StatementCounter() as counter, running("count", slots=SLOTS, through=counter.to) as pool:
        _warm_up(pool)
        counter.statements.clear()
        _submit(pool, jobs)
        return dict(counter.statements)


def _transactions() -> int:
    with transaction() as session:
        return int(session.scalars(_COMMITS).one())


_COMMITS = text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")

if __name__ == "__main__":
    sys.exit(0 if run() else 1)

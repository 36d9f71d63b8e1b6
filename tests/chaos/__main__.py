"""`python -m tests.chaos`: jobs of four tenants while everything is killed; then the account.

Exits with 1 when anything was lost, duplicated, overlapping or stale.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import table
from tests.chaos.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=72, help="jobs to submit")
    parser.add_argument("--real", type=int, default=6, help="of them train a tiny base for real")
    parser.add_argument("--faults", type=int, default=45, help="faults to inject")
    parser.add_argument("--seconds", type=float, default=420, help="the longest time for faults")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn by chance")
    parser.add_argument("--logs", type=Path, help="write the logs' ends to this file")
    asked = parser.parse_args()
    for name in list(os.environ):  # no setting of the developer's reaches the run
        if name.startswith("CELORA_") and not name.startswith("CELORA_TEST_"):
            del os.environ[name]
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        plan = Plan(asked.jobs, asked.real, asked.faults, asked.seconds, asked.seed)
        outcome = run(plan, lambda line: print(line, flush=True))
    if asked.logs is not None:
        asked.logs.write_text(outcome.logs)
    print(table(outcome))
    return 0 if outcome.findings.clean else 1


if __name__ == "__main__":
    sys.exit(main())

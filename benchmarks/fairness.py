"""Three tenants with weights 1 : 1 : 2 and a thousand jobs on four slots, all real processes.

While all three have work, each gets its part of the GPU time; none waits longer than
docs/fairness.md promises; and jobs start when it was forecast that they would.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import text

from benchmarks.pool import running, unfinished
from models.queries import gpus, tenants
from models.queries import jobs as job_queries
from models.session import transaction
from models.spec import JobSpec
from tasks.dispatcher.forecast import EVERY_SECONDS

SLOTS = 4
JOBS = 1000
WEIGHTS = {"ada": 1.0, "bob": 1.0, "cleo": 2.0}
# Steps of 10 ms each: jobs of 0.05 to 0.4 s, shorter or longer ones for each tenant.
STEPS = {"ada": (5, 10, 15), "bob": (10, 20, 30), "cleo": (15, 25, 40)}
AIM_SHARE = 0.05
AIM_ERROR = 0.25
AHEAD_SECONDS = 5.0  # a start that is nearer is no forecast
LEAST_SAMPLES = 100
_SECONDS = 1500


@dataclass(frozen=True, slots=True)
class Attempt:
    """One stretch of a job on a slot, in seconds of the database's clock."""

    job_id: str
    tenant: str
    gpu_id: int
    placed: float
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One forecast of a start; seconds of the database's clock."""

    job_id: str
    made: float
    start: float
    basis: str


@dataclass(slots=True)
class Outcome:
    shares: dict[str, float]  # of the GPU time, over the weight's part: 1 is fair
    waits: dict[str, float]  # the longest between two placements while the tenant had work
    bounds: dict[str, float]
    errors: list[float] = field(default_factory=list)  # relative to the time that was left
    first_errors: list[float] = field(default_factory=list)  # of each job's first forecast alone
    assumed: int = 0  # forecasts made before anything had been measured

    @property
    def fair(self) -> bool:
        return all(abs(share - 1) <= AIM_SHARE for share in self.shares.values())

    @property
    def bounded(self) -> bool:
        return all(self.waits[tenant] <= bound for tenant, bound in self.bounds.items())

    @property
    def foreseen(self) -> bool:
        return len(self.errors) >= LEAST_SAMPLES and statistics.median(self.errors) <= AIM_ERROR


def run(*, jobs: int = JOBS) -> Outcome:
    """Run the jobs, print what came out, and return it."""
    with running("fairness", slots=SLOTS) as pool:
        with transaction() as session:
            for tenant, weight in WEIGHTS.items():
                tenants.change_tenant(session, tenant, {"weight": weight})
        _cordon(on=True)  # all tenants have work before the first slot opens
        _submit(jobs)
        pool.wait_until("all are prepared", lambda: _queued() == jobs, seconds=_SECONDS)
        _cordon(on=False)
        samples = _watch()
        attempts = _attempts()
    outcome = judge(attempts, samples)
    show(outcome)
    return outcome


def judge(attempts: list[Attempt], samples: Iterable[Sample]) -> Outcome:
    """What the attempts and forecasts come to; no database any more."""
    began = {one.job_id: one.began for one in attempts}
    # From then on somebody has nothing left to place.
    until = min(max(one.placed for one in attempts if one.tenant == who) for who in WEIGHTS)
    used = {
        who: sum(
            max(0.0, min(one.ended, until) - one.began) for one in attempts if one.tenant == who
        )
        for who in WEIGHTS
    }
    part = sum(used.values()) / sum(WEIGHTS.values())
    outcome = Outcome({who: used[who] / (part * weight) for who, weight in WEIGHTS.items()}, {}, {})
    for who in WEIGHTS:
        placed = sorted(one.placed for one in attempts if one.tenant == who)
        waits = [b - a for a, b in pairwise(placed) if b <= until]
        outcome.waits[who] = max(waits)
        outcome.bounds[who] = bound(attempts, who)
    seen: set[str] = set()
    for sample in sorted(samples, key=lambda sample: sample.made):
        ahead = sample.start - sample.made
        if "no measurement" in sample.basis:
            outcome.assumed += 1
        elif ahead >= AHEAD_SECONDS:
            took = began[sample.job_id] - sample.made
            outcome.errors.append(abs(ahead - took) / max(took, 0.001))
            if sample.job_id not in seen:
                seen.add(sample.job_id)
                outcome.first_errors.append(outcome.errors[-1])
    return outcome


def bound(attempts: list[Attempt], who: str) -> float:
    """The longest wait of a tenant with work, as docs/fairness.md derives it."""
    lengths = [one.ended - one.began for one in attempts]
    turnover = max(_turnovers(attempts))
    longest = max(lengths)
    mean = statistics.fmean(lengths)
    # What is not charged: a slot between two jobs.
    stretch = 1 + statistics.fmean(_turnovers(attempts)) / mean
    others = sum(WEIGHTS.values()) - WEIGHTS[who]
    held = max(
        sum(1 for other in attempts if other.tenant == who and other.placed <= at < other.ended)
        for at in (one.placed for one in attempts if one.tenant == who)
    )
    behind = held / SLOTS * longest * others / WEIGHTS[who]
    return 2 * (longest + turnover) + stretch * (longest + behind)


def _turnovers(attempts: list[Attempt]) -> list[float]:
    """From the end of one job on a slot to the beginning of the next."""
    by_slot = sorted(attempts, key=lambda one: (one.gpu_id, one.began))
    return [b.began - a.ended for a, b in pairwise(by_slot) if a.gpu_id == b.gpu_id]


def show(outcome: Outcome) -> None:
    for who, weight in WEIGHTS.items():
        print(
            f"   {who:<5} weight {weight:g}: {outcome.shares[who]:.3f} of its part of the GPU time"
            f" (aim 1 ± {AIM_SHARE:g}); longest wait {outcome.waits[who]:.2f} s"
            f" (bound {outcome.bounds[who]:.2f} s)"
        )
    print(
        f"   {len(outcome.errors)} forecasts at least {AHEAD_SECONDS:g} s ahead: median error"
        f" {_median(outcome.errors)} (aim {AIM_ERROR:.0%}); of each job's first one, seconds after"
        f" the slots opened, {_median(outcome.first_errors)}; {outcome.assumed} more were made"
        " before anything was measured"
    )


def _median(errors: list[float]) -> str:
    return f"{statistics.median(errors):.1%}" if errors else "none"


def _cordon(*, on: bool) -> None:
    with transaction() as session:
        for gpu in gpus.list_gpus(session):
            gpus.set_cordon(session, gpu.host, gpu.index, on=on)


def _submit(jobs: int) -> None:
    """In no order: none of the tenants comes first."""
    chance = random.Random(17)
    owners = [tenant for tenant in WEIGHTS for _ in range(jobs // len(WEIGHTS) + 1)][:jobs]
    chance.shuffle(owners)
    with transaction() as session:
        for tenant in owners:
            steps = chance.choice(STEPS[tenant])
            spec = JobSpec(
                base_model=f"scripted:?steps={steps}&step_seconds=0.01",
                dataset="none",
                evaluate=False,
            )
            job_queries.insert_job(session, spec, tenant=tenant, user=tenant)


def _queued() -> int:
    with transaction() as session:
        return int(session.scalar(text("SELECT count(*) FROM jobs WHERE state = 'queued'")) or 0)


def _watch() -> set[Sample]:
    """All forecasts that were on record until the last job was done."""
    samples: set[Sample] = set()
    deadline = time.monotonic() + _SECONDS
    while unfinished():
        if time.monotonic() > deadline:
            raise SystemExit(f"not done within {_SECONDS} s")
        with transaction() as session:
            samples.update(Sample(*row) for row in session.execute(_FORECASTS))
        time.sleep(EVERY_SECONDS / 2)
    return samples


def _attempts() -> list[Attempt]:
    with transaction() as session:
        return [Attempt(*row) for row in session.execute(_ATTEMPTS)]


_FORECASTS = text("""
    SELECT job_id, extract(epoch FROM made_at)::float8,
           extract(epoch FROM expected_start_at)::float8, basis
    FROM forecasts JOIN jobs ON jobs.id = forecasts.job_id
    WHERE expected_start_at IS NOT NULL AND jobs.state = 'queued'
""")

_ATTEMPTS = text("""
    SELECT jobs.id, tenants.name, gpu_id, extract(epoch FROM placed_at)::float8,
           extract(epoch FROM claimed_at)::float8, extract(epoch FROM ended_at)::float8
    FROM attempts
    JOIN jobs ON jobs.id = attempts.job_id
    JOIN tenants ON tenants.id = jobs.tenant_id
    WHERE gpu_id IS NOT NULL AND claimed_at IS NOT NULL
    ORDER BY placed_at
""")


def met(outcome: Outcome) -> bool:
    return outcome.fair and outcome.bounded and outcome.foreseen


if __name__ == "__main__":
    sys.exit(0 if met(run()) else 1)

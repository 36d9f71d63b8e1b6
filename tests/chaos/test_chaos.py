"""`make chaos`, in short: a few jobs and faults. Servers are the run's own."""

from __future__ import annotations

import pytest

from models.errors import SetupError
from tests.chaos.report import table
from tests.chaos.run import Plan, run
from tests.conftest import unavailable


@pytest.mark.slow  # a minute
@pytest.mark.broker
@pytest.mark.timeout(400)
def test_a_short_run_of_chaos_loses_nothing() -> None:
    plan = Plan(jobs=14, real=0, faults=8, seconds=30, seed=4, calm_seconds=120)
    try:
        outcome = run(plan, print)
    except SetupError as error:
        unavailable(str(error))
        return
    said = table(outcome)
    print(said)
    if not outcome.findings.clean:
        pytest.fail(f"{said}\n{outcome.logs}", pytrace=False)
    assert outcome.findings.submitted == plan.jobs
    assert (
        outcome.findings.completed + outcome.findings.failed + outcome.findings.cancelled
        == plan.jobs
    )
    assert len({fault.kind for fault in outcome.faults}) >= 4
    assert all(fault.proof for fault in outcome.faults)

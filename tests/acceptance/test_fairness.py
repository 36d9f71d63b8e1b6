"""A thousand scripted jobs of three tenants through the whole product: docs/fairness.md holds."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import fairness


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(1800)
def test_shares_waits_and_forecasts_of_a_thousand_jobs() -> None:
    outcome = fairness.run()
    assert outcome.fair, outcome.shares
    assert outcome.bounded, (outcome.waits, outcome.bounds)
    assert len(outcome.errors) >= fairness.LEAST_SAMPLES
    assert statistics.median(outcome.errors) <= fairness.AIM_ERROR

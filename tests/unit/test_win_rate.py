"""Win rates: how ties count, and intervals against published figures."""

from __future__ import annotations

import pytest

from models.win_rate import WinRate, least_difference, wilson


def rated(tuned: int, base: int, ties: int = 0) -> WinRate:
    return WinRate(tuned, base, ties, people=1)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, "Interval estimation for the single proportion"
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_as_published(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson(successes / trials, trials) == pytest.approx((low, high), abs=5e-5)


def test_difference_of_two_rates_as_published() -> None:
    """Newcombe 1998, example (a): 56/70 less 48/80, method 10: 0.0524 to 0.3339."""
    assert least_difference(rated(56, 14), rated(48, 32)) == pytest.approx(0.0524, abs=5e-5)
    assert least_difference(rated(56, 14), rated(0, 0)) is None


def test_a_tie_is_half_a_win() -> None:
    assert rated(3, 1, ties=4).rate == rated(5, 3).rate == 0.625
    assert rated(0, 0, ties=6).rate == 0.5


def test_nobody_has_rated() -> None:
    nobody = rated(0, 0)
    assert (nobody.rate, nobody.interval) == (None, None)
    assert str(nobody) == "nobody has rated it"
    assert nobody.as_json()["win_rate"] is None


def test_it_is_said_in_one_line() -> None:
    assert str(WinRate(8, 1, 1, 2)) == (
        "85% (95 % interval 54%-96%; 10 ratings by 2: 8 tuned, 1 base, 1 tied)"
    )

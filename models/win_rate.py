"""How often people preferred the tuned model's answer, and how sure that is. Pure functions.

A tie counts as half a win, a skip not at all. The interval is Wilson's score interval at 95 %
(E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22,
1927; recommended for few trials by Brown, Cai and DasGupta, "Interval estimation for a binomial
proportion", Statistical Science 16, 2001). It stays within 0 and 1, and is honest after ten
ratings. Each rating is taken as a trial of its own; several people on one prompt agree more than
that, so that their interval is a little too narrow. admin.evaluations holds the same formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, slots=True)
class WinRate:
    """Of the tuned model against the base model, 0 to 1; none where nobody has rated."""

    tuned: int
    base: int
    ties: int
    people: int

    @property
    def ratings(self) -> int:
        return self.tuned + self.base + self.ties

    @property
    def rate(self) -> float | None:
        return (self.tuned + self.ties / 2) / self.ratings if self.ratings else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the 95 % confidence interval."""
        return None if self.rate is None else wilson(self.rate, self.ratings)

    def __str__(self) -> str:
        if self.rate is None or self.interval is None:
            return "nobody has rated it"
        low, high = self.interval
        return (
            f"{self.rate:.0%} (95 % interval {low:.0%}-{high:.0%}; {self.ratings} ratings by"
            f" {self.people}: {self.tuned} tuned, {self.base} base, {self.ties} tied)"
        )

    def as_json(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        return {
            "win_rate": self.rate,
            "low": low,
            "high": high,
            "ratings": self.ratings,
            "tuned": self.tuned,
            "base": self.base,
            "ties": self.ties,
            "people": self.people,
        }


def wilson(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; `rate` may count halves."""
    square = _Z * _Z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    spread = rate * (1 - rate) / trials + square / (4 * trials * trials)
    half = _Z / (1 + square / trials) * math.sqrt(spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def least_difference(one: WinRate, other: WinRate) -> float | None:
    """Lower end of the 95 % interval of `one`'s rate less `other`'s; none where one has none.

    Newcombe's method 10, from the two Wilson intervals (R. G. Newcombe, "Interval estimation for
    the difference between independent proportions", Statistics in Medicine 17, 1998).
    """
    if one.rate is None or other.rate is None or one.interval is None or other.interval is None:
        return None
    below, above = one.rate - one.interval[0], other.interval[1] - other.rate
    return one.rate - other.rate - math.hypot(below, above)

"""Gates: what holds, what does not, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.gates import METRICS, Figure, Gate, Standing, judge
from models.win_rate import WinRate

BASE = {"loss": 3.0, "perplexity": 20.0, "exact_match": 0.1, "bleu": 5.0, "rouge_l": 0.2}
TUNED = {"loss": 1.1, "perplexity": 3.0, "exact_match": 0.8, "bleu": 60.0, "rouge_l": 0.7}
HOLDER = Standing(label="bot/1", held_out="rows", answered=(200,), base=BASE, tuned=TUNED)


def candidate(ratings: tuple[int, int] = (0, 0), /, **figures: float | None) -> Standing:
    return replace(
        HOLDER, label="bot/2", tuned=TUNED | figures, ratings=WinRate(*ratings, ties=0, people=1)
    )


def judged(metric: str, against: Any, least: float, one: Standing, other: Any = HOLDER) -> Figure:
    return judge(Gate(metric, against, least), one, other)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "win_rate"])
@pytest.mark.parametrize("against", ["base", "holder"])
def test_better_holds_and_worse_does_not(metric: str, against: str) -> None:
    """Lower is better for loss and perplexity, higher for the rest."""
    reference = (BASE if against == "base" else TUNED)[metric]
    better = -0.1 if METRICS[metric].lower_is_better else 0.1
    assert judged(metric, against, 0.1, candidate(**{metric: reference + better})).holds
    assert judged(metric, against, 0, candidate(**{metric: reference})).holds
    for least, value in ((0.1, reference + better / 2), (0, reference - better)):
        figure = judged(metric, against, least, candidate(**{metric: value}))
        assert not figure.holds
        assert figure.compared_with == reference
        assert METRICS[metric].words in figure.why


def test_not_a_number_never_holds() -> None:
    assert not judged("loss", "holder", 0, candidate(loss=float("nan"))).holds


def test_other_held_out_rows_are_not_compared() -> None:
    better = replace(candidate(loss=0.1), held_out="other rows")
    figure = judged("loss", "holder", 0, better)
    assert not figure.holds
    assert "bot/2 and bot/1 were evaluated on different held-out data" in figure.why
    assert judged("loss", "base", 0, better).holds  # its own base was read on the same rows


@pytest.mark.parametrize("unknown", ["bot/1", "bot/2"])
def test_unknown_held_out_rows_are_not_compared(unknown: str) -> None:
    one, other = candidate(loss=0.1), HOLDER
    if unknown == "bot/1":
        other = replace(HOLDER, held_out=None)
    else:
        one = replace(one, held_out=None)
    assert "not on record" in judged("loss", "holder", 0, one, other).why


def test_answers_made_otherwise_are_not_compared_but_losses_are() -> None:
    other = replace(candidate(loss=0.1, exact_match=1.0), answered=(20,))
    assert "different settings" in judged("exact_match", "holder", 0, other).why
    assert judged("loss", "holder", 0, other).holds


def test_what_was_not_measured_does_not_pass() -> None:
    assert (
        "no exact match of bot/2"
        in judged("exact_match", "base", 0, candidate(exact_match=None)).why
    )
    unevaluated = replace(candidate(), tuned=None, base=None)
    for against in ("base", "holder"):
        assert "has not been evaluated" in judged("loss", against, 0, unevaluated).why
    assert (
        "has not been evaluated"
        in judged("loss", "holder", 0, candidate(loss=0.1), unevaluated).why
    )


def test_the_first_holder_has_nobody_to_be_better_than() -> None:
    assert judged("loss", "holder", 5, candidate(), None).holds
    assert not judged("loss", "base", 5, candidate(), None).holds


@pytest.mark.parametrize(
    ("ratings", "least", "holds"),
    [
        ((1, 0), 0, False),  # all of one rating says nothing
        ((9, 1), 0, True),
        ((6, 4), 0, False),
        ((90, 10), 0.3, True),
        ((90, 10), 0.35, False),
        ((0, 0), 0, False),
    ],
)
def test_a_win_rate_counts_by_the_lower_end_of_its_interval(
    ratings: tuple[int, int], least: float, *, holds: bool
) -> None:
    assert judged("win_rate", "base", least, candidate(ratings)).holds is holds


def test_win_rates_of_two_versions() -> None:
    holder = replace(HOLDER, ratings=WinRate(50, 50, 0, people=1))
    assert judged("win_rate", "holder", 0, candidate((90, 10)), holder).holds
    assert not judged("win_rate", "holder", 0, candidate((55, 45)), holder).holds
    assert "nobody has rated bot/1" in judged("win_rate", "holder", 0, candidate((9, 1))).why

"""What a version must show before an alias moves to it. Pure functions over figures on record.

A figure is compared only with one taken on the same held-out rows, and one that is made from
generated answers only where the answers were made and compared in the same way. What cannot be
compared does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.win_rate import WinRate, least_difference


@dataclass(frozen=True, slots=True)
class Metric:
    words: str
    lower_is_better: bool = False
    from_answers: bool = False


METRICS: dict[str, Metric] = {
    "loss": Metric("loss on held-out rows", lower_is_better=True),
    "perplexity": Metric("perplexity", lower_is_better=True),
    "exact_match": Metric("exact match", from_answers=True),
    "bleu": Metric("BLEU", from_answers=True),
    "rouge_l": Metric("ROUGE-L", from_answers=True),
    "win_rate": Metric("win rate", from_answers=True),
}

_ROUNDING = 1e-9  # 1.2 is better than 1.1 by 0.1, whatever binary fractions say


@dataclass(frozen=True, slots=True)
class Gate:
    metric: str
    against: str  # base, holder
    least: float  # least improvement, in the metric's own unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is on record about one version."""

    label: str  # support-bot/3
    held_out: str | None  # digest of the held-out rows; none: not known
    answered: tuple[Any, ...] = ()  # the settings that answers were made and compared with
    base: Mapping[str, float | None] | None = None  # metric → value; none: not evaluated
    tuned: Mapping[str, float | None] | None = None
    ratings: WinRate = field(default_factory=lambda: WinRate(0, 0, 0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One gate's outcome, as it is kept with the move."""

    metric: str
    against: str
    least: float
    value: float | None = None
    compared_with: float | None = None
    improvement: float | None = None  # for a win rate the lower end of its interval
    holds: bool
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(gate: Gate, candidate: Standing, holder: Standing | None) -> Figure:
    """Whether one gate holds. Without a holder there is nothing to be worse than."""
    metric = METRICS[gate.metric]
    if gate.against == "holder" and holder is None:
        return _figure(gate, holds=True, why="nothing holds the alias yet")
    other = holder if gate.against == "holder" and holder is not None else candidate
    if (why := _not_comparable(metric, candidate, other)) is not None:
        return _figure(gate, holds=False, why=why)
    if gate.metric == "win_rate":
        return _judge_win_rate(gate, candidate, other)
    versus = other.base if gate.against == "base" else other.tuned
    value = (candidate.tuned or {}).get(gate.metric)
    reference = (versus or {}).get(gate.metric)
    of = f"the base of {other.label}" if gate.against == "base" else other.label
    for label, found in ((candidate.label, value), (of, reference)):
        if found is None:
            return _figure(gate, holds=False, why=f"no {metric.words} of {label} is on record")
    assert value is not None and reference is not None  # noqa: S101, PT018 (just looked at)
    improvement = reference - value if metric.lower_is_better else value - reference
    return _figure(
        gate,
        value=value,
        compared_with=reference,
        improvement=improvement,
        holds=improvement >= gate.least - _ROUNDING,  # never true of NaN
        why=f"{metric.words} {value:.6g} against {reference:.6g} of {of}: better by"
        f" {improvement:.6g}, asked is {gate.least:g}",
    )


def _judge_win_rate(gate: Gate, candidate: Standing, other: Standing) -> Figure:
    """By the lower end of the interval, so that a few ratings do not pass."""
    mine = candidate.ratings
    if mine.rate is None or mine.interval is None:
        return _figure(gate, holds=False, why=f"nobody has rated {candidate.label}")
    if gate.against == "base":
        reference, least = 0.5, mine.interval[0] - 0.5
    else:
        known, difference = other.ratings.rate, least_difference(mine, other.ratings)
        if known is None or difference is None:
            return _figure(gate, holds=False, why=f"nobody has rated {other.label}")
        reference, least = known, difference
    of = "an even choice" if gate.against == "base" else f"{reference:.1%} of {other.label}"
    return _figure(
        gate,
        value=mine.rate,
        compared_with=reference,
        improvement=least,
        holds=least >= gate.least - _ROUNDING,
        why=f"win rate {mine.rate:.1%} of {mine.ratings} ratings against {of}: with 95 % confidence"
        f" better by {least:.3g} at least, asked is {gate.least:g}",
    )


def _not_comparable(metric: Metric, candidate: Standing, other: Standing) -> str | None:
    for one in (candidate, other):
        if one.tuned is None:
            return f"{one.label} has not been evaluated"
    if other is candidate:
        return None  # its base was measured beside it
    if candidate.held_out is None or other.held_out is None:
        return f"on which rows {candidate.label} and {other.label} were evaluated is not on record"
    if candidate.held_out != other.held_out:
        return f"{candidate.label} and {other.label} were evaluated on different held-out data"
    if metric.from_answers and candidate.answered != other.answered:
        return (
            f"the answers of {candidate.label} and {other.label} were made or compared with"
            " different settings (eval_generate_rows, eval_max_new_tokens, eval_answer_pattern)"
        )
    return None


def _figure(gate: Gate, *, holds: bool, why: str, **figures: float | None) -> Figure:
    return Figure(
        metric=gate.metric,
        against=gate.against,
        least=gate.least,
        holds=holds,
        why=why,
        **figures,
    )

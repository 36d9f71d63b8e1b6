"""How far two models are apart, and what rounding is allowed."""

from __future__ import annotations

import pytest
import torch

from gpu_worker.trainer.comparison import EXACT, ROUNDING, compare


def logits(seed: int = 0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 50, generator=source) for length in (3, 7)]


def moved(by: float) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(9)
    return [one + by * torch.randn(one.shape, generator=source) for one in logits()]


def test_equal_logits_are_within_any_tolerance() -> None:
    found = compare(logits(), logits())
    assert (found.positions, found.max_difference, found.mean_kl, found.top1) == (10, 0, 0, 1)
    assert found.within(EXACT)


def test_figures_are_means_over_positions_and_not_over_prompts() -> None:
    other = logits()
    other[1] = other[1] + 1.0  # all logits of seven positions of ten: the same probabilities
    found = compare(logits(), other)
    assert found.mean_difference == pytest.approx(0.7, abs=1e-5)
    assert found.mean_kl == pytest.approx(0, abs=1e-6)
    assert found.spread == pytest.approx(1, abs=0.1)


def test_rounding_passes_and_another_model_does_not() -> None:
    assert compare(logits(), moved(0.02)).within(ROUNDING)
    assert not compare(logits(), moved(0.02)).within(EXACT)
    for other in (moved(0.2), logits(1)):
        assert not compare(logits(), other).within(ROUNDING)


def test_what_is_no_number_never_passes() -> None:
    broken = logits()
    broken[0][1, 2] = float("nan")
    assert not compare(logits(), broken).within(ROUNDING)
    assert not compare(broken, logits()).within(ROUNDING)


def test_the_words_hold_the_figures() -> None:
    said = compare(logits(), moved(0.02)).words()
    assert "of their spread" in said
    assert "of 10 positions" in said
    assert ROUNDING.words() == (
        "mean KL at most 0.01 nats, mean difference at most 5 % of the logits' spread"
    )

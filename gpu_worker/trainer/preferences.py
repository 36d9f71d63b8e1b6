"""How a model ranks held-out preference pairs, and the rewards that DPO reads from that.

A reward is beta × (log-probability of the answer under the tuned model − under the reference), as
in the DPO paper (arXiv:2305.18290); its margin is the chosen answer's reward less the rejected
one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import torch
from torch.nn.functional import logsigmoid
from trl.trainer.utils import use_adapter

from gpu_worker.protocol import Preferences, Ranking
from gpu_worker.trainer.measure import read_held_out, row_losses

# TRL's name for the adapter that a run began with, which stays as it was.
REFERENCE = "ref"

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of both answers, pair by pair."""

    chosen: list[float]
    rejected: list[float]

    @property
    def margins(self) -> list[float]:
        return [c - r for c, r in zip(self.chosen, self.rejected, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen answer is the more probable one, 0–1."""
        return fmean(margin > 0 for margin in self.margins)

    def reward_margins(self, reference: Scores, beta: float) -> list[float]:
        pairs = zip(self.margins, reference.margins, strict=True)
        return [beta * (mine - theirs) for mine, theirs in pairs]


def compare(
    tuned: Any,
    base_context: Callable[[], AbstractContextManager[Any]],
    rows: pa.Table,
    *,
    beta: float,
    report: Report,
) -> Preferences:
    """Base and tuned model on the same pairs. `report` may raise, to stop."""
    scores = score(tuned, rows, partial(report, "tuned model: comparing answers"))
    with _reference(tuned):
        reference = score(tuned, rows, partial(report, "reference: comparing answers"))
    base = reference
    if REFERENCE in tuned.peft_config:
        with base_context() as model:
            base = score(model, rows, partial(report, "base model: comparing answers"))
    return Preferences(
        pairs=rows.num_rows,
        base=_ranking(base, reference, beta),
        tuned=_ranking(scores, reference, beta),
    )


def held_out_rewards(
    model: Any, path: Path, beta: float, *, autocast: torch.dtype | None
) -> dict[str, float]:
    """In the middle of a run, the loss and TRL's rewards on the held-out pairs; {} without any."""
    rows = read_held_out(path) if path.is_file() else None
    if rows is None or not rows.num_rows:
        return {}
    with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
        scores = score(model, rows)
        with _reference(model):
            reference = score(model, rows)
    margins = scores.reward_margins(reference, beta)
    return {
        "eval_loss": float(-logsigmoid(torch.tensor(margins, dtype=torch.float64)).mean()),
        "eval_rewards/margins": fmean(margins),
        "eval_rewards/accuracies": fmean(margin > 0 for margin in margins),
    }


def score(model: Any, rows: pa.Table, report: Callable[[int, int], None] | None = None) -> Scores:
    """What `model` as it is, its adapter on or off, makes of each pair."""
    rejected = rows.select(["rejected_ids", "rejected_labels"])
    sides = rows, rejected.rename_columns(["input_ids", "labels"])
    chosen, rejected = ([-loss for loss in row_losses(model, s, report=report)] for s in sides)
    return Scores(chosen, rejected)


@contextmanager
def _reference(model: Any) -> Iterator[None]:
    """The model as the run began: without its adapter, or with the one it began with."""
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield


def _ranking(scores: Scores, reference: Scores, beta: float) -> Ranking:
    margins = scores.reward_margins(reference, beta)
    return Ranking(
        accuracy=scores.accuracy,
        reward_margin=fmean(margins),
        reward_accuracy=None if scores is reference else fmean(margin > 0 for margin in margins),
    )

"""How far one model's logits are from another's, on the same prompts.

The reference's logits are kept on the CPU in float32, for as many positions as a fixed amount of
memory holds: a vocabulary of 128,000 makes half a megabyte of each position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_worker.trainer.measure import core, read_held_out, untouched

_MOST_BYTES = 256 << 20  # of the logits that are kept
_MOST_PROMPTS = 16
_MOST_TOKENS = 256  # of one prompt

# Where no held-out rows are left: ordinary text, a list, arithmetic, code, another script.
FIXED_PROMPTS = (
    "The capital of France is Paris, and the river that flows through it is called the Seine.",
    "To make bread you need flour, water, salt and yeast. First,",
    "Question: A farmer has 17 sheep and buys 5 more. How many sheep has he now? Answer:",
    "def add(first, second):\n    return first + second\n\n\ndef multiply(first, second):\n",
    "Dear customer, thank you for your order. It was shipped today and will arrive on",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
)


@dataclass(frozen=True)
class Tolerance:
    """What rounding to bfloat16 explains (docs/export-and-chat.md has the measurements).

    Both must hold. The likeliest token is told and not judged: of two that are about as likely it
    is chance.
    """

    mean_kl: float  # nats a position, reference against candidate
    mean_difference: float  # of the logits, in units of their spread

    def words(self) -> str:
        if self == EXACT:
            return "no difference at all"
        percent = 100 * self.mean_difference
        return (
            f"mean KL at most {self.mean_kl:g} nats, mean difference at most {percent:g} % of the"
            " logits' spread"
        )


ROUNDING = Tolerance(mean_kl=0.01, mean_difference=0.05)
EXACT = Tolerance(mean_kl=0.0, mean_difference=0.0)


@dataclass(frozen=True)
class Difference:
    """Of two models' logits. `spread` is the reference's standard deviation at a position."""

    positions: int
    max_difference: float
    mean_difference: float
    spread: float
    mean_kl: float  # nats
    max_kl: float
    top1: float  # share of positions with the same likeliest token

    def within(self, allowed: Tolerance) -> bool:
        """False as well for what is no number."""
        return (
            self.mean_kl <= allowed.mean_kl
            and self.mean_difference <= allowed.mean_difference * self.spread
        )

    def words(self) -> str:
        part = 100 * self.mean_difference / self.spread if self.spread else 0.0
        return (
            f"logits differ by {self.mean_difference:.3g} on average ({part:.2g} % of their spread)"
            f" and {self.max_difference:.3g} at most, KL {self.mean_kl:.2g} nats, the same"
            f" likeliest token at {100 * self.top1:.1f} % of {self.positions} positions"
        )


Logits = list[torch.Tensor]  # of each prompt, [positions, vocabulary], float32


def prompts_for(tokenizer: Any, held_out: Path | None, vocabulary: int) -> tuple[str, list[Any]]:
    """(where they come from, token ids of each): held-out rows, else fixed ones."""
    rows = read_held_out(held_out) if held_out is not None and held_out.is_file() else None
    if rows is not None and rows.num_rows:
        found = rows.slice(0, _MOST_PROMPTS)["input_ids"].to_pylist()
        source = "held-out rows"
    else:
        found = [tokenizer(text)["input_ids"] for text in FIXED_PROMPTS]
        source = "fixed prompts"
    room = max(1, _MOST_BYTES // (4 * vocabulary))
    each = max(1, min(_MOST_TOKENS, room // len(found)))
    return source, [ids[:each] for ids in found if ids]


def read(model: Any, prompts: list[list[int]], report: Callable[[int, int], None]) -> Logits:
    """The logits at every position. Leaves the model as it was; `report` may raise, to stop."""
    found = []
    with untouched(model), torch.no_grad():
        for done, ids in enumerate(prompts):
            report(done, len(prompts))
            tokens = torch.tensor([ids], device=core(model).device)
            found.append(model(input_ids=tokens, use_cache=False).logits[0].float().cpu())
    return found


def compare(reference: Logits, candidate: Logits) -> Difference:
    """`reference` is what is right, `candidate` what is judged."""
    parts = [_one(first, second) for first, second in zip(reference, candidate, strict=True)]
    positions = sum(part["positions"] for part in parts)

    def mean(name: str) -> float:
        return math.fsum(part[name] * part["positions"] for part in parts) / positions

    return Difference(
        positions=int(positions),
        max_difference=max(part["max_difference"] for part in parts),
        mean_difference=mean("mean_difference"),
        spread=mean("spread"),
        mean_kl=mean("mean_kl"),
        max_kl=max(part["max_kl"] for part in parts),
        top1=mean("top1"),
    )


def _one(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, float]:
    difference = (reference - candidate).abs()
    first, second = reference.log_softmax(-1), candidate.log_softmax(-1)
    kl = (first.exp() * (first - second)).sum(-1).clamp(min=0)
    same = reference.argmax(-1) == candidate.argmax(-1)
    return {
        "positions": len(reference),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "spread": float(reference.std(dim=-1).mean()),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1": float(same.float().mean()),
    }

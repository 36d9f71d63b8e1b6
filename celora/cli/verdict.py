"""What was found in training data, for people."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from celora.cli.output import facts
from celora.data_words import histogram_facts, quality_facts, quality_warnings, spread

if TYPE_CHECKING:
    from rich.console import Console


def print_verdict(verdict: dict[str, Any], to: Console) -> None:
    """Keys that are missing are left out: not every verdict knows tokens and steps."""
    quality = verdict.get("quality") or {}
    to.print(facts([*_lines(verdict), *(quality_facts(quality) if quality else [])]))
    for warning in [*(verdict.get("warnings") or []), *quality_warnings(quality)]:
        to.print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)


def _lines(verdict: dict[str, Any]) -> list[tuple[str, str]]:
    known: dict[str, str] = defaultdict(
        lambda: "–",
        {name: f"{n:,}" for name, n in verdict.items() if isinstance(n, int)},
    )
    columns = ", ".join(
        f"{role} ← {name}" for role, name in _entries(verdict, "columns") if role != name
    )
    lines = [
        ("shape", f"{verdict.get('shape') or 'not found'}{f' ({columns})' if columns else ''}")
    ]
    if "rows_train" in verdict:
        rows = f"{known['rows_train']} to train on, {known['rows_eval']} held out"
        lines.append(("rows", rows))
    elif verdict.get("shape"):  # else it ended at the first row
        lines.append(("rows", f"{known['rows_read']} read"))
    dropped = ", ".join(f"{count:,} {why}" for why, count in _entries(verdict, "dropped"))
    if dropped:
        lines.append(("dropped", dropped))
    if verdict.get("truncated"):
        lines.append(("cut off", f"{known['truncated']} rows"))
    if lengths := spread(verdict.get("lengths") or {}):
        lines.append(("tokens a row", lengths))
        lines += histogram_facts(verdict.get("length_histogram") or [])
    if "total_steps" in verdict:
        packed = ", packed" if verdict.get("packed") else ""
        lines.append(
            ("steps", f"{known['total_steps']} of {known['tokens_per_step']} tokens{packed}")
        )
    if isinstance(verdict.get("masked_share"), (int, float)):
        lines.append(("without loss", f"{verdict['masked_share']:.0%} of the tokens"))
    example = (verdict.get("example") or {}).get("text_with_mask")
    if example:
        lines.append(("one row", f"{example}\n(loss on what stands in ⟦ ⟧)"))
    return lines


def _entries(verdict: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    """The entries of a dict in the verdict that have a value; none where it is missing."""
    return [(key, value) for key, value in (verdict.get(name) or {}).items() if value]

"""The table of a run."""

from __future__ import annotations

from collections import defaultdict

from tests.chaos.run import Outcome

_SHOWN = 20  # sentences of each finding


def table(outcome: Outcome) -> str:
    found = outcome.findings
    lines = [
        "",
        f"submitted            {found.submitted:5}",
        f"completed            {found.completed:5}",
        f"failed, as scripted  {found.failed:5}",
        f"cancelled            {found.cancelled:5}",
        f"lost                 {len(found.lost):5}",
        f"duplicated           {len(found.duplicated):5}",
        f"overlapping leases   {len(found.overlapping):5}",
        f"stale writes         {len(found.stale):5}",
        "",
        f"{'faults':34} {'times':>5} {'seconds':>8}",
    ]
    by_kind = defaultdict(list)
    for fault in outcome.faults:
        by_kind[fault.kind].append(fault.seconds)
    for kind, seconds in sorted(by_kind.items()):
        lines.append(f"{kind:34} {len(seconds):5} {sum(seconds):8.1f}")
    total = sum(fault.seconds for fault in outcome.faults)
    lines.append(f"{'all (each proved)':34} {len(outcome.faults):5} {total:8.1f}")
    lines += [
        "",
        f"broker    {outcome.broker}",
        f"owners    {_counts(outcome.acts)}",
        f"attempts  {_counts(outcome.attempts)}",
        f"trainers  {outcome.trainers} processes watched",
        f"restarts  {outcome.restarts} of processes, as a service manager would",
        (
            f"time      {outcome.fault_seconds:.0f} s of faults, then {outcome.calm_seconds:.0f} s"
            " until the last job had ended"
        ),
    ]
    for name in ("lost", "duplicated", "overlapping", "stale"):
        sentences = getattr(found, name)
        lines += [f"{name}: {sentence}" for sentence in sentences[:_SHOWN]]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"

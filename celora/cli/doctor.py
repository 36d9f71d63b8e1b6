"""`celora doctor`."""

from __future__ import annotations

import sys

from celora.cli.output import AsJson, print_json


def doctor(as_json: AsJson = False) -> int:
    """Check this machine: Python, torch, CUDA, database, broker, store, disk, clock.

    Exit code 5 when something is broken; each finding says how to mend it.
    """
    from celora.doctor import Verdict, examine

    findings = []
    colours = {Verdict.OK: "32", Verdict.WARN: "33", Verdict.FAIL: "1;31"}
    plain = not sys.stdout.isatty()
    for check in examine():
        findings.append(check)
        if as_json:
            continue
        word = f"{check.verdict:<4}"
        mark = word if plain else f"\x1b[{colours[check.verdict]}m{word}\x1b[0m"
        print(f"{mark}  {check.name:<12}  {check.said}", flush=True)
        if check.remedy:
            print(f"{'':<20}→ {check.remedy}", flush=True)
    if as_json:
        print_json(findings)
    return 5 if any(check.verdict is Verdict.FAIL for check in findings) else 0

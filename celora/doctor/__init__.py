"""`celora doctor`: is this machine set up to run Celora, and if not, how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celora.doctor.check import Check, Verdict
from celora.doctor.machine import clock, disk, python
from celora.doctor.services import artifact_store, broker, database, secret_key, workers
from celora.doctor.training import devices, model_cache, torch

__all__ = ["Check", "Verdict", "examine"]

_EXAMINERS: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
    ("python", python),
    ("torch", torch),
    ("devices", devices),
    ("database", database),
    ("secret key", secret_key),
    ("broker", broker),
    ("workers", workers),
    ("artifacts", artifact_store),
    ("model cache", model_cache),
    ("disk", disk),
    ("clock", clock),
)


def examine() -> Iterator[Check]:
    """All checks, one after another; a check that breaks is itself a finding."""
    for name, examiner in _EXAMINERS:
        try:
            yield from examiner()
        except Exception as error:  # noqa: BLE001 (a doctor goes on to the next patient)
            yield Check(
                name,
                Verdict.FAIL,
                f"could not be examined: {type(error).__name__}: {error}",
                "report this; it is a fault of the examination",
            )

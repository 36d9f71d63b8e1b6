"""What a job asks of a GPU, in one form: equal wishes have equal keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Self

from models.spec import JobSpec
from models.states import Purpose, Stage

# What a GPU's worker can do beyond training is written like labels, among its versions, which each
# new session of a worker replaces whole. A dispatcher of an earlier version looks among the GPU's
# own labels, does not find it, and leaves such jobs alone; a worker of an earlier version has none,
# and is given none.
_ABILITY = "celora/"
ABILITIES = {f"{_ABILITY}{stage}": "yes" for stage in (Stage.EXPORT, Stage.GENERATE)}


def abilities_for(purpose: Purpose) -> dict[str, str]:
    name = f"{_ABILITY}{purpose.first_stage}"
    return {name: ABILITIES[name]} if name in ABILITIES else {}


@dataclass(frozen=True, slots=True)
class GpuWish:
    memory_bytes: int = 0  # at least so many
    model: str | None = None  # part of the model's name, in lower case
    labels: dict[str, str] = field(default_factory=dict)  # all of these, abilities among them

    @classmethod
    def of(cls, spec: JobSpec, purpose: Purpose = Purpose.TUNE) -> Self:
        return cls(
            memory_bytes=round((spec.gpu_memory_gb or 0) * 1e9),
            model=spec.gpu_model.strip().lower() if spec.gpu_model else None,
            labels=spec.gpu_labels | abilities_for(purpose),
        )

    @property
    def plain_labels(self) -> dict[str, str]:
        """Those that people set."""
        return {name: it for name, it in self.labels.items() if not name.startswith(_ABILITY)}

    def key(self) -> str:
        return json.dumps(
            {"memory_bytes": self.memory_bytes, "model": self.model, "labels": self.labels},
            sort_keys=True,
        )

    def words(self) -> str:
        """For people: "80 GB, H100, zone=a"; empty when anything will do."""
        parts = [f"{self.memory_bytes / 1e9:g} GB"] if self.memory_bytes else []
        parts += [self.model] if self.model else []
        parts += [f"{name}={value}" for name, value in sorted(self.plain_labels.items())]
        return ", ".join(parts)

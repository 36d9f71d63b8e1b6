"""What a job asks of a GPU, in one form: equal wishes have equal keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Self

from models.abilities import PREFIX, abilities_for, release_words
from models.spec import JobSpec
from models.states import Purpose

# Of a job that runs in a pod of its own. No worker has this ability, so no dispatcher prepares such
# a job or places it: the pod does (models/queries/own_pod.py).
OWN_POD = f"{PREFIX}pod"


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
            labels=spec.gpu_labels | abilities_for(spec, purpose),
        )

    def in_own_pod(self) -> Self:
        return replace(self, labels=self.labels | {OWN_POD: "yes"})

    @property
    def own_pod(self) -> bool:
        return OWN_POD in self.labels

    @property
    def plain_labels(self) -> dict[str, str]:
        """Those that people set."""
        return {name: it for name, it in self.labels.items() if not name.startswith(PREFIX)}

    @property
    def abilities(self) -> dict[str, str]:
        """Those that its worker must report."""
        return {name: it for name, it in self.labels.items() if name.startswith(PREFIX)}

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
        parts += [words] if (words := release_words(self.labels)) else []
        return ", ".join(parts)

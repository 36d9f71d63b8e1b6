"""What a job asks of a GPU, in one form: equal wishes have equal keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Self

from models.spec import JobSpec


@dataclass(frozen=True, slots=True)
class GpuWish:
    memory_bytes: int = 0  # at least so many
    model: str | None = None  # part of the model's name, in lower case
    labels: dict[str, str] = field(default_factory=dict)  # all of these

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        return cls(
            memory_bytes=round((spec.gpu_memory_gb or 0) * 1e9),
            model=spec.gpu_model.strip().lower() if spec.gpu_model else None,
            labels=dict(spec.gpu_labels),
        )

    def key(self) -> str:
        return json.dumps(
            {"memory_bytes": self.memory_bytes, "model": self.model, "labels": self.labels},
            sort_keys=True,
        )

    def words(self) -> str:
        """For people: "80 GB, H100, zone=a"; empty when anything will do."""
        parts = [f"{self.memory_bytes / 1e9:g} GB"] if self.memory_bytes else []
        parts += [self.model] if self.model else []
        parts += [f"{name}={value}" for name, value in sorted(self.labels.items())]
        return ", ".join(parts)

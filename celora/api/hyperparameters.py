"""OpenAI's hyperparameters: what JobSpec says for them, and the way back.

`"auto"` is not left to chance. With `rows` the rows of the training file, where they are known:

    n_epochs                   3; for under 100 rows more, for over 10,000 fewer, from 1 to 10
    batch_size                 rows / 64, from 4 to 16 rows
    learning_rate_multiplier   1
    beta                       0.1
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.spec import DEFAULT_LEARNING_RATES, JobSpec

AUTO = "auto"
_MICRO_BATCH = 4  # rows at once, at most: the rest of a batch is accumulated
_EPOCHS, _BATCH = 3, 16  # where nothing is known
_FEW_ROWS, _MANY_ROWS = 100, 10_000
_MOST_EPOCHS, _LEAST_BATCH = 10, 4
_ROWS_PER_BATCH_ROW = 64

BatchSize = Literal["auto"] | Annotated[int, Field(ge=1, le=256)]
Multiplier = Literal["auto"] | Annotated[float, Field(gt=0)]
Epochs = Literal["auto"] | Annotated[int, Field(ge=1, le=50)]
Beta = Literal["auto"] | Annotated[float, Field(gt=0, le=2)]


class Hyperparameters(BaseModel):
    """For method `supervised`. What is left out is `auto`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    batch_size: BatchSize | None = Field(None, description="Rows per optimizer step, 1–256.")
    learning_rate_multiplier: Multiplier | None = Field(
        None, description="Times the method's usual rate: 1e-4 lora, 2e-4 qlora, 2e-5 full."
    )
    n_epochs: Epochs | None = Field(None, description="Passes over the data, 1–50.")


class DpoHyperparameters(Hyperparameters):
    """For method `dpo`."""

    beta: Beta | None = Field(None, description="Pull towards the base model, over 0 up to 2.")


class AnsweredHyperparameters(BaseModel):
    """The numbers that a job has: `auto` has become one."""

    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int


class AnsweredDpo(AnsweredHyperparameters):
    beta: float


def spec_fields(
    asked: Hyperparameters, *, method: str, rows: int | None, chosen: set[str]
) -> dict[str, Any]:
    """Fields of JobSpec. A number that was asked for is given; `auto` only fills what the caller
    has not `chosen` by a field of JobSpec itself."""
    fields: dict[str, Any] = {}
    epochs = _number(asked.n_epochs)
    if epochs is not None or not chosen & {"epochs", "max_steps"}:
        fields["epochs"] = auto_epochs(rows) if epochs is None else epochs
    batch = _number(asked.batch_size)
    if batch is not None or not chosen & {"batch_size", "gradient_accumulation"}:
        fields |= _micro_batches(auto_batch(rows) if batch is None else int(batch))
    multiplier = _number(asked.learning_rate_multiplier)
    if multiplier is not None:
        fields["learning_rate"] = multiplier * DEFAULT_LEARNING_RATES[method]
    beta = _number(asked.beta) if isinstance(asked, DpoHyperparameters) else None
    if beta is not None:
        fields["dpo_beta"] = beta
    return fields


def answered(spec: JobSpec) -> AnsweredHyperparameters:
    """Whole passes are counted up: half an epoch is answered as one."""
    usual = DEFAULT_LEARNING_RATES[spec.method]
    numbers = {
        "batch_size": spec.effective_batch_size,
        "learning_rate_multiplier": round(spec.resolved_learning_rate / usual, 6),
        "n_epochs": math.ceil(spec.epochs),
    }
    if spec.method == "dpo":
        return AnsweredDpo(**numbers, beta=spec.dpo_beta)
    return AnsweredHyperparameters(**numbers)


def auto_epochs(rows: int | None) -> int:
    if rows is None:
        return _EPOCHS
    if rows < _FEW_ROWS:
        return min(_MOST_EPOCHS, max(_EPOCHS, _EPOCHS * _FEW_ROWS // max(1, rows)))
    return _EPOCHS if rows <= _MANY_ROWS else max(1, _EPOCHS * _MANY_ROWS // rows)


def auto_batch(rows: int | None) -> int:
    if rows is None:
        return _BATCH
    return min(_BATCH, max(_LEAST_BATCH, rows // _ROWS_PER_BATCH_ROW))


def _micro_batches(batch: int) -> dict[str, int]:
    """`batch` rows a step, as micro-batches of equal size."""
    micro = next(size for size in range(_MICRO_BATCH, 0, -1) if batch % size == 0)
    return {"batch_size": micro, "gradient_accumulation": batch // micro}


def _number(value: float | str | None) -> float | None:
    return None if value is None or isinstance(value, str) else value

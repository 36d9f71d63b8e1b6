"""What a caller sends to make a job: OpenAI's fields, and Celora's own under `celora`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from celora.api.hyperparameters import DpoHyperparameters, Hyperparameters
from models.spec import JobSpec

# What a request of OpenAI's always says itself.
RESERVED = frozenset({"version", "base_model", "dataset", "eval_dataset", "metadata", "gpus"})

Key = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[Key, Value], Field(max_length=16)]


class Strict(BaseModel):
    """No text where a number belongs, and no field that would be passed over in silence."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Supervised(Strict):
    hyperparameters: Hyperparameters | None = None


class Dpo(Strict):
    hyperparameters: DpoHyperparameters | None = None


class Method(Strict):
    type: Literal["supervised", "dpo", "reinforcement"] = Field(
        description="`reinforcement` is refused: there are no graders here."
    )
    supervised: Supervised | None = Field(None, description="For `type: supervised` alone.")
    dpo: Dpo | None = Field(None, description="For `type: dpo` alone.")
    reinforcement: dict[str, Any] | None = Field(None, description="Refused.")


class Wandb(Strict):
    project: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, max_length=128)
    entity: str | None = Field(None, max_length=128)
    tags: list[Annotated[str, StringConstraints(max_length=64)]] | None = Field(None, max_length=50)


class Integration(Strict):
    type: Literal["wandb"]
    wandb: Wandb


def _optional_fields(names: set[str]) -> dict[str, Any]:
    """Fields of JobSpec, each of which may be left out; `parse_spec` looks at their values."""
    return {
        name: (field.annotation, Field(default=None, description=field.description))
        for name, field in JobSpec.model_fields.items()
        if name in names
    }


CeloraOptions: type[BaseModel] = create_model(
    "CeloraOptions",
    __config__=ConfigDict(extra="forbid"),
    __doc__="Fields of JobSpec (docs/jobspec.md), as far as the request does not say them itself.",
    **_optional_fields(set(JobSpec.model_fields) - RESERVED),
)


# For the page at /docs: what is shown of a request, and filled in where one is tried.
_ASKED: list[Any] = [
    {
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "training_file": "file-AbCdEfGhIjKlMnOpQrStUvWx",
        "suffix": "support",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "metadata": {"team": "support"},
        "celora": {"method": "qlora", "rank": 32, "priority": 5},
    },
    {
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "training_file": "file-AbCdEfGhIjKlMnOpQrStUvWx",
        "method": {
            "type": "dpo",
            "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}},
        },
    },
]
_ASKED_SHORT: list[Any] = [
    {"base_model": "Qwen/Qwen2.5-0.5B-Instruct", "dataset": "owner/rows", "epochs": 2, "rank": 8}
]


class CreateJob(Strict):
    """OpenAI's request for a fine-tuning job. In Python, `celora` rides in `extra_body`."""

    model_config = ConfigDict(json_schema_extra={"examples": _ASKED})

    model: str = Field(
        min_length=1, max_length=256, description="A hub name (owner/model), or an alias."
    )
    training_file: str = Field(min_length=1, max_length=64, description="Id of an uploaded file.")
    validation_file: str | None = Field(None, max_length=64, description="Id of an uploaded file.")
    suffix: str | None = Field(
        None, min_length=1, max_length=64, description="A part of the fine-tuned model's name."
    )
    seed: int | None = Field(
        None, ge=0, le=2_147_483_647, description="Without one, a random number is answered."
    )
    metadata: Metadata | None = Field(
        None, description="Up to 16 pairs, by which the list can be filtered."
    )
    integrations: list[Integration] | None = Field(
        None, max_length=1, description="One W&B run that the job writes to."
    )
    method: Method | None = Field(None, description="Without one, `supervised`.")
    hyperparameters: Hyperparameters | None = Field(
        None, description="The older place of the method's `hyperparameters`, which win."
    )
    celora: CeloraOptions | None = Field(
        None, description="Celora's own options: any other field of JobSpec."
    )


ShortForm: type[BaseModel] = create_model(
    "ShortForm",
    __config__=ConfigDict(extra="forbid", json_schema_extra={"examples": _ASKED_SHORT}),
    __doc__="A job in JobSpec's own words (docs/jobspec.md).",
    **_optional_fields(set(JobSpec.model_fields) - {"base_model", "dataset"}),
    base_model=(str, Field(min_length=1, max_length=256, description="Hub name, or an alias.")),
    dataset=(
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="Id of an uploaded file; or a path or URL that the administrator allows.",
        ),
    ),
)

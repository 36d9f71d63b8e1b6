"""JobSpec: everything a user can say about one fine-tuning job.

Flat on purpose: the command's options, the HTTP short form and the Python call carry the same
names. A field is only ever added, never renamed or removed, while `version` stays the same.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import SpecError

Method = Literal["lora", "qlora", "full", "dpo"]
Shape = Literal[
    "auto",
    "instruction",
    "prompt_completion",
    "messages",
    "sharegpt",
    "text",
    "preference",
    "openai_preference",
]
Optimizer = Literal["auto", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit"]
Tracker = Literal["wandb", "tensorboard", "mlflow"]
NotifyOn = Literal["started", "completed", "failed", "cancelled", "waiting"]

PROJECTION_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PREFERENCE_SHAPES = frozenset({"preference", "openai_preference"})
PREFERENCE_ROLES = frozenset({"chosen", "rejected", "preferred_output", "non_preferred_output"})
COLUMN_ROLES = PREFERENCE_ROLES | frozenset(
    {
        "instruction",
        "input",
        "output",
        "prompt",
        "completion",
        "messages",
        "conversations",
        "text",
        "system",
    }
)
DEFAULT_LEARNING_RATES: dict[str, float] = {"lora": 1e-4, "qlora": 2e-4, "full": 2e-5, "dpo": 5e-6}

_MOST = 2**31 - 1  # of what a row keeps as an integer
ADAPTER_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # no "/" and "@": references are split there
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][\w .:/-]*$")]
AdapterName = Annotated[str, Field(min_length=1, max_length=64, pattern=ADAPTER_NAME_PATTERN)]


class JobSpec(BaseModel):
    """One fine-tuning job. Frozen; an unknown field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(1, description="version of this schema")
    name: Name | None = Field(
        None, description="a name people recognise the job by, 1–64 characters"
    )
    adapter_name: AdapterName | None = Field(
        None,
        description="name under which its adapter becomes the next version: letters, digits, . _ -",
    )

    # The base model
    base_model: str = Field(
        min_length=1, description="hub name, folder or fsspec URL of the base model"
    )
    base_revision: str | None = Field(
        None, description="hub revision (branch, tag or commit); pinned to a commit when resolved"
    )
    trust_remote_code: bool = Field(
        default=False,
        description="run the model's own code; the administrator's allow-list must name it",
    )

    # The data
    dataset: str = Field(
        min_length=1, description="path, fsspec URL or hub name of the training data"
    )
    dataset_revision: str | None = Field(None, description="hub revision of the data set")
    dataset_split: str = Field("train", description="split to read from a hub or saved data set")
    eval_dataset: str | None = Field(
        None, description="held-out data; without it a part of `dataset` is split off"
    )
    shape: Shape = Field("auto", description="record shape; `auto` detects and says it")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="role → column name, for data with other names: {prompt: question}",
    )
    validation_fraction: float = Field(
        0.05, ge=0, le=0.5, description="part split off for evaluation, 0–0.5, by a hash of the row"
    )
    max_sequence_length: int = Field(
        2048, ge=8, le=1_048_576, description="tokens per row, 8–1048576"
    )
    over_long: Literal["truncate", "drop"] = Field(
        "truncate", description="what happens to a row longer than `max_sequence_length`"
    )
    loss_on: Literal["answer", "all"] = Field("answer", description="tokens that carry loss")
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="several rows in one sequence; `auto`: off below 100 optimizer steps"
    )

    # The method
    method: Method = Field(
        "lora", description="lora, qlora (NF4 base), full, or dpo (preference pairs, an adapter)"
    )
    dpo_base: Literal["lora", "qlora"] = Field(
        "lora", description="dpo only: how its adapter and base are held"
    )
    dpo_beta: float = Field(
        0.1, gt=0, le=10, description="dpo only: pull towards the reference model, over 0 up to 10"
    )
    rank: int = Field(16, ge=1, le=1024, description="LoRA rank, 1–1024")
    alpha: float = Field(32, gt=0, le=4096, description="LoRA scale numerator, over 0 up to 4096")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="LoRA dropout, 0 up to (not) 1; dpo uses none"
    )
    target_modules: Literal["auto"] | tuple[str, ...] = Field(
        PROJECTION_LAYERS, description="layers that get an adapter; `auto` finds the linear ones"
    )
    use_rslora: bool = Field(
        default=False, description="scale by alpha/√rank instead of alpha/rank"
    )
    bf16_pure: bool = Field(
        default=False, description="full only: weights in bfloat16 instead of fp32"
    )

    # The optimisation
    epochs: float = Field(3, gt=0, le=1000, description="passes over the data, over 0 up to 1000")
    max_steps: int | None = Field(
        None, ge=1, le=_MOST, description="optimizer steps, at least 1; overrides `epochs`"
    )
    batch_size: int = Field(4, ge=1, le=4096, description="rows per micro-batch, 1–4096")
    gradient_accumulation: int = Field(
        4, ge=1, le=4096, description="micro-batches per optimizer step, 1–4096"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="peak rate; default 1e-4 lora, 2e-4 qlora, 2e-5 full, 5e-6 dpo",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="rate schedule")
    warmup_steps: int = Field(
        100,
        ge=0,
        le=_MOST,
        description="steps of linear warm-up, never more than a tenth of the run",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay, 0–1")
    gradient_clip: float = Field(0.3, gt=0, description="largest gradient norm, over 0")
    optimizer: Optimizer = Field(
        "auto", description="auto: paged_adamw_8bit on a qlora base, adamw_torch otherwise"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="compute type; `auto` takes the best the device has"
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="recompute activations; `auto`: on with CUDA, off on a CPU"
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = Field(
        "auto", description="attention kernel; `auto`: variable-length where installed, else sdpa"
    )
    seed: int = Field(42, ge=0, le=_MOST, description="seed of weights, order and dropout")

    # The run
    checkpoint_every_steps: int = Field(
        200, ge=1, le=_MOST, description="optimizer steps between checkpoints"
    )
    keep_checkpoints: int = Field(
        3, ge=1, le=_MOST, description="newest registered checkpoints that are kept"
    )
    log_every_steps: int = Field(
        10, ge=1, le=_MOST, description="optimizer steps between progress lines"
    )
    eval_every_steps: int | None = Field(
        None,
        ge=1,
        le=_MOST,
        description="optimizer steps between held-out losses; none: only at the end",
    )
    time_limit_seconds: int = Field(
        86_400, ge=1, le=_MOST, description="GPU time after which the job fails"
    )
    on_non_finite: Literal["fail", "stop_at_checkpoint"] = Field(
        "fail", description="NaN or infinite loss: fail, or end at the last good checkpoint"
    )

    # The evaluation
    evaluate: bool = Field(
        default=True, description="compare base and tuned model on the held-out rows"
    )
    eval_generate_rows: int = Field(
        200, ge=0, le=100_000, description="held-out rows answered by generation; 0: loss only"
    )
    eval_max_new_tokens: int = Field(256, ge=1, le=32_768, description="tokens per answer, at most")
    eval_answer_pattern: str | None = Field(
        None, description="regular expression whose first group (or match) is compared exactly"
    )

    # Placement and records
    priority: int = Field(
        0, ge=-100, le=100, description="higher goes first within a tenant; waiting counts as well"
    )
    urgent: bool = Field(
        default=False, description="goes first, and may take the GPU of a preemptible job"
    )
    preemptible: bool = Field(
        default=False,
        description="may be put back into the queue, with a checkpoint, for an urgent job",
    )
    gpu_memory_gb: float | None = Field(
        None, gt=0, le=10_000, description="memory the GPU must have, in GB (10⁹ bytes)"
    )
    gpu_model: str | None = Field(
        None, min_length=1, max_length=100, description="part of the GPU model's name: H100"
    )
    gpu_labels: dict[str, str] = Field(
        default_factory=dict, description="labels the GPU must carry: {zone: a}"
    )
    after: str | None = Field(None, description="id of a job that has to complete first")
    start_from_adapter: bool = Field(
        default=False, description="begin with the adapter of the job named in `after`"
    )
    gpus: Literal[1] = Field(1, description="devices per job; reserved, always 1")
    track: tuple[Tracker, ...] = Field((), description="trackers fed beside Postgres")
    track_project: str | None = Field(None, description="project or experiment name there")
    track_name: str | None = Field(None, description="W&B's name of the run; else the job's")
    track_entity: str | None = Field(None, description="W&B's team or user; else the key's own")
    track_tags: tuple[str, ...] = Field((), description="W&B's tags of the run")
    notify: tuple[Name, ...] = Field(
        (), description="targets of the tenant that hear of this job: `celora notify list`"
    )
    notify_on: tuple[NotifyOn, ...] = Field(
        ("completed", "failed", "cancelled"), description="what the targets in `notify` hear of"
    )
    notify_wait_seconds: int | None = Field(
        None,
        ge=60,
        le=_MOST,
        description="waiting that is too long, at least 60; none: as the target says",
    )
    metadata: dict[str, str] = Field(default_factory=dict, description="the caller's own labels")

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = sorted(set(columns) - COLUMN_ROLES)
        if unknown:
            roles = ", ".join(sorted(COLUMN_ROLES))
            raise ValueError(f"unknown role {unknown[0]!r}; roles are {roles}")
        return columns

    @field_validator("target_modules", mode="before")
    @classmethod
    def _module_names(cls, value: Any) -> Any:
        if value == ["auto"]:
            return "auto"
        if isinstance(value, (list, tuple)) and (not value or not all(value)):
            raise ValueError("name at least one layer, or use 'auto'")
        return value

    @field_validator("eval_answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.held_as == "qlora" and "lm_head" in self.target_modules:
            raise ValueError("target_modules: a quantised base takes no adapter on lm_head")
        if self.bf16_pure and self.method != "full":
            raise ValueError("bf16_pure: only for method 'full'")
        if self.start_from_adapter and self.after is None:
            raise ValueError("start_from_adapter: name the job in `after`")
        if self.start_from_adapter and self.method == "full":
            raise ValueError("start_from_adapter: method 'full' has no adapter")
        return self

    @model_validator(mode="after")
    def _pairs_fit(self) -> Self:
        pairs = self.method == "dpo"
        if self.shape != "auto" and (self.shape in PREFERENCE_SHAPES) != pairs:
            only = "is only for method 'dpo'" if not pairs else "holds no pairs: dpo needs some"
            raise ValueError(f"shape: {self.shape} {only}")
        if pairs and self.packing == "on":
            raise ValueError("packing: preference pairs are not packed")
        if pairs and self.loss_on == "all":
            raise ValueError("loss_on: dpo compares answers, their prompt is the same")
        if not pairs:
            for name in ("dpo_base", "dpo_beta"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only for method 'dpo'")
        return self

    @property
    def held_as(self) -> Literal["lora", "qlora", "full"]:
        """How base and trained weights are held: dpo is a loss, on an adapter of either kind."""
        return self.dpo_base if self.method == "dpo" else self.method

    @property
    def resolved_dropout(self) -> float:
        """Of the adapter. DPO compares probabilities with a reference's: dropout would be noise."""
        return 0.0 if self.method == "dpo" else self.dropout

    @property
    def scripted(self) -> bool:
        """True for the scripted trainer, which plays a script instead of training."""
        return self.base_model.startswith("scripted:")

    @property
    def resolved_learning_rate(self) -> float:
        return self.learning_rate or DEFAULT_LEARNING_RATES[self.method]

    @property
    def resolved_optimizer(self) -> str:
        if self.optimizer != "auto":
            return self.optimizer
        return "paged_adamw_8bit" if self.held_as == "qlora" else "adamw_torch"

    @property
    def effective_batch_size(self) -> int:
        """Rows (or packs) per optimizer step."""
        return self.batch_size * self.gradient_accumulation

    def resolved_warmup_steps(self, total_steps: int) -> int:
        """Warm-up for a run of `total_steps`: never more than a tenth of it."""
        return min(self.warmup_steps, total_steps // 10)


def stored_spec(fields: dict[str, Any]) -> JobSpec:
    """A JobSpec from a job's row. Fields that a later version added are passed over.

    Workers and dispatchers of two versions share the rows while a deploy is under way. Raises
    SpecError for a row that no version of ours has written.
    """
    try:
        return JobSpec.model_validate(
            {name: value for name, value in fields.items() if name in JobSpec.model_fields}
        )
    except (ValidationError, AttributeError) as error:
        raise SpecError(
            f"the job's specification on record cannot be read: {_first_fault(error)}",
            where="jobs.spec",
            remedy="submit the job again",
        ) from None


def _first_fault(error: ValidationError | AttributeError) -> str:
    if not isinstance(error, ValidationError):
        return "it is no object"
    first = error.errors(include_url=False)[0]
    return ": ".join([*map(str, first["loc"][:1]), first["msg"]])


def parse_spec(fields: dict[str, Any]) -> JobSpec:
    """A JobSpec from untrusted fields. Raises SpecError, which names the field that is wrong."""
    try:
        return JobSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "spec"
        others = [".".join(map(str, one["loc"])) for one in error.errors(include_url=False)[1:]]
        what = first["msg"].removeprefix("Value error, ")
        raise SpecError(
            what + (f" (wrong as well: {', '.join(others)})" if others else ""),
            where=field,
            remedy="`celora submit --help` lists every field with its range",
        ) from None

"""The fields of JobSpec as keyword arguments, so that an editor completes and mypy checks them.

models/spec.py says what each one means; a test holds that the two agree.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from models.spec import Method, NotifyOn, Optimizer, Shape, Tracker


class DataFields(TypedDict, total=False):
    """What decides how data is prepared, beside the data set itself."""

    method: Method
    base_model: str
    base_revision: str | None
    trust_remote_code: bool
    dataset_revision: str | None
    dataset_split: str
    eval_dataset: str | None
    shape: Shape
    columns: dict[str, str]
    validation_fraction: float
    max_sequence_length: int
    over_long: Literal["truncate", "drop"]
    loss_on: Literal["answer", "all"]
    packing: Literal["auto", "on", "off"]
    epochs: float
    max_steps: int | None
    batch_size: int
    gradient_accumulation: int


class SpecFields(DataFields, total=False):
    """All fields."""

    version: Literal[1]
    name: str | None
    adapter_name: str | None
    dataset: str
    dpo_base: Literal["lora", "qlora"]
    dpo_beta: float
    rank: int
    alpha: float
    dropout: float
    target_modules: Literal["auto"] | tuple[str, ...]
    use_rslora: bool
    bf16_pure: bool
    learning_rate: float | None
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    optimizer: Optimizer
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    gradient_checkpointing: Literal["auto", "on", "off"]
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"]
    seed: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    log_every_steps: int
    eval_every_steps: int | None
    time_limit_seconds: int
    on_non_finite: Literal["fail", "stop_at_checkpoint"]
    evaluate: bool
    eval_generate_rows: int
    eval_max_new_tokens: int
    eval_answer_pattern: str | None
    priority: int
    urgent: bool
    preemptible: bool
    gpu_memory_gb: float | None
    gpu_model: str | None
    gpu_labels: dict[str, str]
    after: str | None
    start_from_adapter: bool
    gpus: Literal[1]
    track: tuple[Tracker, ...]
    track_project: str | None
    track_name: str | None
    track_entity: str | None
    track_tags: tuple[str, ...]
    notify: tuple[str, ...]
    notify_on: tuple[NotifyOn, ...]
    notify_wait_seconds: int | None
    metadata: dict[str, str]

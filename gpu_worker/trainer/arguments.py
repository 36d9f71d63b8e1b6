"""Every argument of TRL that matters, from the spec by hand; the rest is switched off."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from gpu_worker.trainer.job import Job, Size

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
# torch's fused AdamW is the same algorithm in one kernel, and what TRL takes by default.
_OPTIMIZERS = {"adamw_torch": "adamw_torch_fused"}


def sft_config(job: Job, size: Size) -> SFTConfig:
    """Nothing is tokenised, truncated, masked, shuffled or packed here: preprocessing has."""
    return SFTConfig(
        **_shared(job, size),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        completion_only_loss=False,
    )


def dpo_config(job: Job, size: Size) -> DPOConfig:
    """The loss of the DPO paper, against a reference without dropout. The rows are cut already."""
    return DPOConfig(
        **_shared(job, size),
        loss_type=["sigmoid"],
        beta=job.spec.dpo_beta,
        disable_dropout=True,
        remove_unused_columns=False,  # the columns are ours: PairCollator knows them
        max_length=None,
    )


def _shared(job: Job, size: Size) -> dict[str, Any]:
    run, spec, precision = job.run, job.spec, job.precision
    cuda = torch.cuda.is_available()
    return {
        # The run
        "output_dir": run.output_path,
        "per_device_train_batch_size": size.batch_size,
        "gradient_accumulation_steps": size.gradient_accumulation,
        "max_steps": size.total_steps,
        "seed": spec.seed,
        "data_seed": spec.seed,
        # The optimisation
        "learning_rate": spec.resolved_learning_rate,
        "lr_scheduler_type": _SCHEDULES[spec.schedule],
        "warmup_steps": size.warmup_steps,
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.gradient_clip,
        "optim": _OPTIMIZERS.get(spec.resolved_optimizer, spec.resolved_optimizer),
        # The device
        "use_cpu": not cuda,
        "bf16": precision.autocast == "bf16",
        "fp16": precision.autocast == "fp16",
        "activation_checkpointing": precision.activation_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        # The data: prepared, see below
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        # The records: ours, see callbacks and checkpoint
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "no",
        "push_to_hub": False,
    }

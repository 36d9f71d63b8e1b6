"""TRL's DPOTrainer with the records and the checkpoints of a Celora job.

The loss and its rewards are TRL's own. The rows are tokenised by preprocessing, both answers with
their prompt, so that nothing is tokenised while a GPU waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DPOTrainer
from typing_extensions import override

from gpu_worker.trainer.job_trainer import JobRecords
from gpu_worker.trainer.preferences import REFERENCE

_IGNORED = -100
# TRL's names; of what else it measures nothing is kept.
_REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


class PairCollator:
    """All chosen rows, then all rejected ones, padded on the right, as TRL's loss takes them."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sides = (("input_ids", "labels"), ("rejected_ids", "rejected_labels"))
        rows = [(one[ids], one[labels]) for ids, labels in sides for one in examples]
        longest = max(len(ids) for ids, _ in rows)

        def block(values: list[list[int]], padding: int) -> torch.Tensor:
            return torch.tensor([row + [padding] * (longest - len(row)) for row in values])

        answer = [[int(label != _IGNORED) for label in labels] for _, labels in rows]
        return {
            "input_ids": block([ids for ids, _ in rows], self._pad),
            "attention_mask": block([[1] * len(ids) for ids, _ in rows], 0),
            "completion_mask": block(answer, 0),
            "tokens": sum(len(ids) for ids, _ in rows),
        }


class PreferenceTrainer(JobRecords, DPOTrainer):
    """Training on pairs; the reference is the model without its adapter, or REFERENCE."""

    @override
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    @override
    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.progress.add_tokens(inputs.pop("tokens"))
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
        measured = self._metrics["train"]
        self.progress.add_rewards({name: measured[name][-1] for name in _REWARDS})
        measured.clear()  # TRL keeps them for its own log, which is off
        return loss


def keep_reference(model: Any) -> None:
    """Keep the adapter as it is now beside the one that is trained: the reference model."""
    model.add_adapter(REFERENCE, model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name:
            trained = model.get_parameter(name.replace(f".{REFERENCE}.", ".default."))
            parameter.data = trained.data.clone()
            parameter.requires_grad_(requires_grad=False)
    model.set_adapter("default")

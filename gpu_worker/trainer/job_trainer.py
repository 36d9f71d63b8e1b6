"""TRL's SFTTrainer with the loss, the records and the checkpoints of a Celora job.

`JobRecords` is what every trainer of ours has; `JobTrainer` adds the supervised loss. That loss is
TRL's and the stock Trainer's: the sum over labelled tokens divided by their number in the whole
accumulated batch. What is left out is what TRL computes beside it on every micro-batch (entropy,
accuracy, token counts, each read back from the device), and the logits of positions that carry no
loss.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer
from transformers.utils.import_utils import is_triton_available
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
from typing_extensions import override

from gpu_worker.protocol import CheckpointSaved
from gpu_worker.trainer.callbacks import Progress
from gpu_worker.trainer.channel import Channel
from gpu_worker.trainer.checkpoint import Checkpoint, load_weights, save_checkpoint

_IGNORED = -100


class Collator(DataCollatorForLanguageModeling):
    """TRL's collator, which keeps packed documents apart by their position ids, plus a count."""

    @override
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["tokens"] = sum(len(example["input_ids"]) for example in examples)
        return batch


class JobRecords(Trainer):
    """Before one of TRL's trainers: `progress` sees every step, checkpoints go to `checkpoints`."""

    def __init__(
        self,
        *,
        progress: Progress,
        channel: Channel,
        checkpoints: Path,
        base_name: str,
        base_revision: str,
        **arguments: Any,
    ) -> None:
        super().__init__(callbacks=[progress], **arguments)
        self.progress = progress
        self.channel = channel
        self.checkpoints = checkpoints
        self.base_name = base_name
        self.base_revision = base_revision
        self.last_checkpoint: Checkpoint | None = None

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.progress.add_loss(loss)
        return loss

    @override
    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.progress.grad_norm = norm
        return norm

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        saved = save_checkpoint(
            self,
            self.checkpoints,
            trained_tokens=self.progress.trained_tokens,
            losses=self.progress.losses,
            base_name=self.base_name,
            base_revision=self.base_revision,
        )
        self.last_checkpoint = saved
        shown = ("train_loss", "eval_loss")
        self.channel.send(
            CheckpointSaved(
                step=saved.step,
                path=str(saved.path),
                size_bytes=saved.size_bytes,
                trained_tokens=saved.trained_tokens,
                metrics={k: v for k, v in self.progress.latest.items() if k in shown},
            )
        )
        self.progress.paused(time.perf_counter() - began)

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))

    @override
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nobody reads it, and it walks over all parameters on every micro-batch

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Progress` records instead."""

    def _send_telemetry(self) -> None:  # TRL's
        """A job tells nobody but its supervisor."""


class JobTrainer(JobRecords, SFTTrainer):
    """Supervised training, on rows that are tokenised and labelled."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Our loss divides by the labelled tokens of all micro-batches, whatever the model's would.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self.loss_is_scaled_for_ga: Any = True
        self._fused = _use_fused_head(self.model, self.args.device)

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        self.progress.add_tokens(inputs.pop("tokens"))
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        head = self._fused_head if self._fused else self._kept_logits
        total, labelled, outputs = head(model, inputs)
        items = labelled if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(items).clamp(min=1)
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        return loss

    def _kept_logits(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Logits of the labelled positions only: (labelled, vocabulary)."""
        targets = inputs.pop("labels")[:, 1:]
        labelled = targets != _IGNORED
        outputs = model(**inputs, logits_to_keep=functional.pad(labelled, (0, 1)))
        targets = targets[labelled]
        logits = outputs.logits
        if self.progress.wants_accuracy:
            self.progress.add_accuracy(
                (logits.detach().argmax(-1) == targets).sum(), labelled.sum()
            )
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        return total, labelled.sum(), outputs

    def _fused_head(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """TRL's kernel, which never holds the logits of a long batch in memory at all."""
        outputs = model(**inputs, fused_lm_head=True)
        labelled = outputs.label_mask.sum()
        if self.progress.wants_accuracy:
            self.progress.add_accuracy(outputs.is_top1.sum(), labelled)
        return -outputs.log_probs.sum(), labelled, outputs


def _use_fused_head(model: Any, device: torch.device) -> bool:
    """TRL's kernel where it is compiled, or where the model cannot pick positions for its head."""
    if device.type == "cuda" and is_triton_available():
        return True
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not hasattr(sys.modules[type(base).__module__], "slice_logits_to_keep")

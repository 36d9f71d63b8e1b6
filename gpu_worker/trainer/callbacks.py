"""What happens at every step beside training: record, report, checkpoint, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from gpu_worker.protocol import Metrics, Point
from gpu_worker.trainer.channel import Channel
from gpu_worker.trainer.checkpoint import Checkpoint
from models.errors import NonFiniteLossError
from models.spec import JobSpec

_DRAIN_SECONDS = 0.25  # between two batches of metrics


@dataclass
class _Step:
    """One optimizer step; tensors stay on the device until a batch of steps is read at once."""

    number: int
    epoch: float
    trained_tokens: int
    loss: torch.Tensor
    rewards: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Progress(TrainerCallback):
    """Per-step values of one run.

    Trainer's own logged loss is an average whose window restarts on resume, and its token count
    restarts with it: loss is recorded for every step here, and tokens are counted over resumes.
    """

    def __init__(
        self,
        spec: JobSpec,
        channel: Channel,
        *,
        total_steps: int,
        resumed: Checkpoint | None,
        device: torch.device,
        held_out: Callable[[Any], dict[str, float]],  # of the model, which must not be kept
    ) -> None:
        self.start_step = 0 if resumed is None else resumed.step
        self.total_steps = total_steps
        self.trained_tokens = 0 if resumed is None else resumed.trained_tokens
        # Of the last `log_every_steps` steps, oldest first.
        self.losses: list[float] = [] if resumed is None else list(resumed.losses)
        self.latest: dict[str, float] = {}
        self.stop_reason: str | None = None
        self.step = self.start_step
        self.first_step_began: float | None = None  # seconds since the epoch, as the next one
        self.last_step_ended: float | None = None
        self.grad_norm: torch.Tensor | float | None = None
        self._spec = spec
        self._channel = channel
        self._device = device
        self._held_out = held_out
        self._pending: list[_Step] = []
        self._drained = 0.0
        self._loss: torch.Tensor | None = None
        self._correct: torch.Tensor | None = None
        self._labelled: torch.Tensor | None = None
        self._rewards: list[dict[str, float]] = []
        self._learning_rate = 0.0
        self._window_began = 0.0
        self._window_tokens = self.trained_tokens
        self._window_step = self.start_step
        self._process = psutil.Process()

    # Called by the trainer in the middle of a step

    @property
    def wants_accuracy(self) -> bool:
        """Only logging steps compute it: it is worth a pass over the logits."""
        return self._is_logged(self.step + 1)

    def add_loss(self, loss: torch.Tensor) -> None:
        """A micro-batch's share of its step's loss."""
        self._loss = loss if self._loss is None else self._loss + loss

    def add_tokens(self, tokens: int) -> None:
        self.trained_tokens += tokens

    def add_accuracy(self, correct: torch.Tensor, labelled: torch.Tensor) -> None:
        self._correct = correct if self._correct is None else self._correct + correct
        self._labelled = labelled if self._labelled is None else self._labelled + labelled

    def add_rewards(self, rewards: dict[str, float]) -> None:
        """Of a micro-batch of preference pairs, by name."""
        self._rewards.append(rewards)

    def paused(self, seconds: float) -> None:
        """Time that was no training (a checkpoint, a held-out loss), for the tokens per second."""
        self._window_began += seconds

    # Called by transformers

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.first_step_began is None:
            self.first_step_began = time.time()
            self._window_began = time.perf_counter()

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._cancel_at_once()

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self._learning_rate = float(objects["optimizer"].param_groups[0]["lr"])

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self.last_step_ended = time.time()
        self.step = state.global_step
        last = self.step >= self.total_steps
        self._record(state)
        self._cancel_at_once()
        every = self._spec.eval_every_steps
        if every is not None and self.step % every == 0:
            self._evaluate(state, objects["model"])
        if self.step % self._spec.checkpoint_every_steps == 0:
            control.should_save = True
        if (reason := self._channel.stop_reason) is not None:
            self.stop_reason = reason
            control.should_save = control.should_training_stop = True
        if last:  # what it ends with is the adapter itself, and a stop would come too late
            self.stop_reason, control.should_save = None, False
        if control.should_save or control.should_training_stop or last:
            self.drain()

    def drain(self) -> None:
        """Read what the device holds, check it, send it. Raises NonFiniteLossError."""
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        self._drained = time.perf_counter()
        losses = torch.stack([step.loss for step in steps]).tolist()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
        points: list[Point] = []
        for step, loss in zip(steps[:bad], losses, strict=False):
            values = {"train_loss": loss, **step.rewards, **step.values}
            values |= {name: float(tensor) for name, tensor in step.tensors.items()}
            self.latest |= values
            # JSON has no infinity: a norm may overflow in fp16, where the step is then skipped
            points += [
                Point(name=n, step=step.number, value=v)
                for n, v in values.items()
                if math.isfinite(v)
            ]
            if step.values:
                self._say(step.number, values)
        self.losses = [*self.losses, *losses[:bad]][-self._spec.log_every_steps :]
        if points:
            good = steps[bad - 1]
            self._channel.send(
                Metrics(
                    points=points,
                    step=good.number,
                    epoch=good.epoch,
                    trained_tokens=good.trained_tokens,
                )
            )
        if bad < len(losses):
            raise NonFiniteLossError(
                f"the loss became {losses[bad]}",
                where=f"step {steps[bad].number}",
                remedy="a lower learning_rate, a lower gradient_clip, or precision bf16 or fp32; "
                "on_non_finite=stop_at_checkpoint keeps the last good checkpoint",
            )

    def memory_bytes(self) -> int:
        """Peak of this job on a CUDA device; on a CPU what the process holds now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return int(self._process.memory_info().rss)

    def _record(self, state: TrainerState) -> None:
        assert self._loss is not None  # noqa: S101 - a step has at least one micro-batch
        step = _Step(self.step, float(state.epoch or 0), self.trained_tokens, self._loss)
        if self._rewards:  # micro-batches weigh alike, as in the loss
            step.rewards = {
                name: fmean(one[name] for one in self._rewards) for name in self._rewards[0]
            }
            self._rewards.clear()
        if self._is_logged(self.step):
            now = time.perf_counter()
            seconds = max(now - self._window_began, 1e-9)
            step.values = {
                "learning_rate": self._learning_rate,
                "tokens_per_second": (self.trained_tokens - self._window_tokens) / seconds,
                "step_seconds": seconds / (self.step - self._window_step),
                "epoch": step.epoch,
                "memory_bytes": float(self.memory_bytes()),
            }
            if isinstance(self.grad_norm, torch.Tensor):
                step.tensors["grad_norm"] = self.grad_norm.detach()
            elif self.grad_norm is not None:
                step.values["grad_norm"] = self.grad_norm
            if self._correct is not None and self._labelled is not None:
                step.tensors["token_accuracy"] = self._correct / self._labelled.clamp(min=1)
            self._window_began, self._window_tokens = now, self.trained_tokens
            self._window_step = self.step
        self._loss = self._correct = self._labelled = self.grad_norm = None
        self._pending.append(step)
        if time.perf_counter() - self._drained >= _DRAIN_SECONDS:
            self.drain()

    def _evaluate(self, state: TrainerState, model: Any) -> None:
        self.drain()
        began = time.perf_counter()
        measured = self._held_out(model)
        if not measured:
            return
        self.latest |= measured
        self._channel.send(
            Metrics(
                points=[Point(name=n, step=self.step, value=v) for n, v in measured.items()],
                step=self.step,
                epoch=float(state.epoch or 0),
                trained_tokens=self.trained_tokens,
            )
        )
        self._channel.log(f"step {self.step}: held-out loss {measured['eval_loss']:.4f}")
        self.paused(time.perf_counter() - began)

    def _say(self, step: int, values: dict[str, float]) -> None:
        self._channel.log(
            f"step {step}: loss {values['train_loss']:.4f}, "
            f"{values['tokens_per_second']:.0f} tokens/s"
        )

    def _cancel_at_once(self) -> None:
        if self._channel.stop_reason == "cancel":
            self._channel.raise_if_stopped()

    def _is_logged(self, step: int) -> bool:
        ends = (self.start_step + 1, self.total_steps)
        return step in ends or step % self._spec.log_every_steps == 0

"""Loss and token accuracy on held-out rows: the same figure however the rows fall into batches."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn.functional import cross_entropy

from models.errors import NonFiniteLossError

_IGNORED = -100
_LOGIT_BYTES = 1 << 30  # of one batch, in float32
_BATCH_TOKENS = 8192  # more fill no device better, and cost memory
_CHUNK = 1024  # positions whose logits are float32 at one time

Report = Callable[[int, int], None]  # rows done, rows in all; may raise, to stop


@dataclass(frozen=True)
class Measured:
    """What teacher-forced reading of the held-out rows gives."""

    rows: int
    tokens: int  # labelled ones
    loss: float  # mean negative log-likelihood per labelled token, in nats
    token_accuracy: float  # share of labelled tokens that the model holds most likely, 0–1

    @property
    def perplexity(self) -> float:
        """exp(loss), held below infinity, which JSON cannot carry."""
        return math.exp(min(self.loss, 700.0))


def read_held_out(path: Path) -> pa.Table:
    """eval.arrow, memory-mapped: `input_ids`, `labels`, `prompt_ids`, `prompt`, `answer`."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def measure(model: Any, rows: pa.Table, *, report: Report | None = None) -> Measured:
    """Read every row, padded and never packed, and weigh each labelled token alike.

    Leaves the model and the random numbers as they were, so a run trains the same with and
    without it. Raises NonFiniteLossError; DeviceMemoryError is the caller's to make of torch's.
    """
    read = list(_read_all(model, rows, report))
    loss = math.fsum(one.loss for one in read)
    correct, tokens = sum(one.correct for one in read), sum(one.tokens for one in read)
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            "the loss on the held-out rows is not a finite number",
            where="evaluation",
            remedy="lower learning_rate, or use precision bf16 or fp32 in place of fp16",
        )
    tokens = max(tokens, 1)
    return Measured(rows.num_rows, tokens, loss / tokens, correct / tokens)


def row_losses(model: Any, rows: pa.Table, *, report: Report | None = None) -> list[float]:
    """The summed loss of each row's labelled tokens: its answer's negative log-probability."""
    return [one.loss for one in _read_all(model, rows, report)]


def held_out_figures(
    model: Any, path: Path, *, autocast: torch.dtype | None = None
) -> dict[str, float]:
    """Loss and token accuracy in the middle of a run; {} where eval.arrow has no row."""
    rows = read_held_out(path) if path.is_file() else None
    if rows is None or not rows.num_rows:
        return {}
    with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
        measured = measure(model, rows)
    return {"eval_loss": measured.loss, "eval_token_accuracy": measured.token_accuracy}


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The model in evaluation mode; mode and `requires_grad` come back one by one.

    PEFT switches `requires_grad` when an adapter is turned off and on, and `model.train()` would
    also wake modules that somebody had put to sleep.
    """
    training = [(module, module.training) for module in model.modules()]
    wants_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, was in training:
                module.training = was
            for parameter, was in wants_grad:
                parameter.requires_grad_(was)


def core(model: Any) -> Any:
    """The transformers model below a PEFT wrapper; its layers hold the adapter all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _batch_tokens(model: Any) -> int:
    vocabulary = core(model).config.get_text_config().vocab_size
    return int(min(_BATCH_TOKENS, _LOGIT_BYTES // (4 * vocabulary)))


@dataclass(frozen=True, slots=True)
class _Row:
    loss: float
    correct: int
    tokens: int


def _read_all(model: Any, rows: pa.Table, report: Report | None) -> list[_Row]:
    """Every row read, in the table's order. Leaves the model as it was."""
    read: list[_Row | None] = [None] * rows.num_rows
    done = 0
    with untouched(model), torch.no_grad():
        for numbers in _batches(rows, _batch_tokens(model)):
            for number, row in zip(numbers, _read(model, rows.take(numbers)), strict=True):
                read[number] = row
            done += len(numbers)
            if report is not None:
                report(done, rows.num_rows)
    return [row for row in read if row is not None]


def _batches(rows: pa.Table, most_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, the longest first: if memory is short, it shows at once."""
    lengths = pc.list_value_length(rows["input_ids"]).to_pylist()
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, most_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _read(model: Any, batch: pa.Table) -> list[_Row]:
    """The rows of a batch, which is halved when memory runs out."""
    try:
        return _forward(model, batch)
    except torch.OutOfMemoryError:
        if batch.num_rows == 1:
            raise
    torch.cuda.empty_cache()  # after the handler: the exception held the tensors
    half = batch.num_rows // 2
    return _read(model, batch.slice(0, half)) + _read(model, batch.slice(half))


def _forward(model: Any, batch: pa.Table) -> list[_Row]:
    ids, labels, mask = padded(batch)
    targets = labels[:, 1:]  # position t foretells token t + 1
    labelled = targets != _IGNORED
    kept = labelled.any(dim=0).nonzero().squeeze(1)
    if not len(kept):
        return [_Row(0.0, 0, 0)] * len(ids)
    device = model.device
    only = {}
    if "logits_to_keep" in inspect.signature(type(core(model)).forward).parameters:
        only["logits_to_keep"] = kept.to(device)  # the head is the costly part
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **only
    ).logits
    if not only:
        logits = logits[:, kept.to(device)]
    picked = labelled[:, kept]
    logits, wanted = logits[picked.to(device)], targets[:, kept][picked].to(device)
    owner = picked.nonzero()[:, 0].to(device)  # of each labelled token, its row
    loss = torch.zeros(len(ids), dtype=torch.float64, device=device)
    correct = torch.zeros(len(ids), dtype=torch.int64, device=device)
    for start in range(0, len(wanted), _CHUNK):
        part, answer = logits[start : start + _CHUNK], wanted[start : start + _CHUNK]
        mine = owner[start : start + _CHUNK]
        loss.index_add_(0, mine, cross_entropy(part.float(), answer, reduction="none").double())
        correct.index_add_(0, mine, (part.argmax(dim=-1) == answer).long())
    tokens = labelled.sum(dim=1).tolist()
    return [_Row(*row) for row in zip(loss.tolist(), correct.tolist(), tokens, strict=True)]


def padded(batch: pa.Table) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and attention mask of a batch, padded on the right: int64 [rows, longest]."""
    ids, labels = batch["input_ids"].to_pylist(), batch["labels"].to_pylist()
    longest = max(map(len, ids))

    def block(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return block(ids, 0), block(labels, _IGNORED), block([[1] * len(row) for row in ids], 0)

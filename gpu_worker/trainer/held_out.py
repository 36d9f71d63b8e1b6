"""The held-out loss in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

_IGNORED = -100


@torch.no_grad()
def held_out_loss(
    model: Any, path: Path, *, batch_size: int, autocast: torch.dtype | None
) -> float | None:
    """Mean negative log-likelihood per labelled token over all rows; None without rows.

    Weighted by tokens, so it does not depend on how rows fall into batches; never packed. No
    random number is drawn: a run trains the same with and without it.
    """
    training = model.training
    model.eval()
    device = model.device
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    try:
        for ids, labels, mask in _batches(path, batch_size):
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits = model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                ).logits
            total += functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten().to(device),
                ignore_index=_IGNORED,
                reduction="sum",
            ).double()
            tokens += int((labels[:, 1:] != _IGNORED).sum())
    finally:
        model.train(training)
    return float(total) / tokens if tokens else None


def _batches(path: Path, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Padded ids, labels and attention mask, `size` rows at a time."""
    if not path.is_file():
        return
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        for record_batch in stream:
            for start in range(0, record_batch.num_rows, size):
                rows = record_batch.slice(start, size)
                ids = rows.column("input_ids").to_pylist()
                labels = rows.column("labels").to_pylist()
                mask = [[1] * len(row) for row in ids]
                yield _padded(ids, 0), _padded(labels, _IGNORED), _padded(mask, 0)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    block = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        block[i, : len(row)] = row
    return torch.from_numpy(block)

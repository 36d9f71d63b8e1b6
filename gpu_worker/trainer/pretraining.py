"""A short pre-training of the demo's tiny base: it learns to copy values, not the demo's task."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_worker.smart_home import Row, pretraining_rows
from gpu_worker.trainer.tiny_base import END, llama_config, save_tokenizer, train_tokenizer
from training_data.templates import instruction_prompt

_ROWS, _BATCH = 8000, 32
_LEARNING_RATE, _WARM_UP, _DECAY = 3e-3, 20, 0.3  # the decay takes the last 30 % of the steps
_MOST_TOKENS = 1000  # of the vocabulary: every word of the task is one token
# As tried: at 0.02 the right JSON came with wrong values; with 4 heads it learnt to copy only
# after twice the steps; a third layer made it slower and no better.
_SHAPE = {"hidden": 128, "layers": 2, "heads": 16, "mlp": 384}
_INITIALIZER_RANGE = 0.08

Progress = Callable[[int, int, float], None]  # step, steps in all, loss


def pretrain(out: Path, *, steps: int, seed: int, progress: Progress) -> None:
    """Write the model and its tokenizer to `out`. The same for the same seed on one machine."""
    rows = list(pretraining_rows(_ROWS))
    tokenizer = train_tokenizer((_prompt(row) + row["output"] for row in rows), _MOST_TOKENS)
    examples = [_example(row, tokenizer) for row in rows]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**_config(tokenizer)))
        _train(model, _batches(examples, seed), steps, progress)
    model.save_pretrained(out)
    save_tokenizer(tokenizer, out)


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    config = llama_config(tokenizer, vocab=tokenizer.get_vocab_size(), **_SHAPE)
    return config | {"initializer_range": _INITIALIZER_RANGE}


def _train(
    model: Any, batches: Iterator[tuple[torch.Tensor, ...]], steps: int, progress: Progress
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / _WARM_UP, (steps - step) / (_DECAY * steps))
    )
    for step in range(1, steps + 1):
        ids, mask, labels = next(batches)
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        answer = targets >= 0  # the loss is on the answer, so the head is computed only there
        loss = cross_entropy(model.lm_head(hidden[answer]), targets[answer])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, steps, loss.item())


def _prompt(row: Row) -> str:
    """As preprocessing lays out an instruction row, so that the base knows the form."""
    return instruction_prompt(row["instruction"], row["input"])


def _example(row: Row, tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and labels that are negative before the answer."""
    prompt = tokenizer.encode(_prompt(row)).ids
    answer = [*tokenizer.encode(row["output"]).ids, tokenizer.token_to_id(END)]
    return torch.tensor(prompt + answer), torch.tensor([-1] * len(prompt) + answer)


def _batches(
    examples: list[tuple[torch.Tensor, torch.Tensor]], seed: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Ids, attention mask and labels, padded: [rows, tokens] each."""
    rng = random.Random(seed)  # noqa: S311  an order, not a secret
    while True:
        ids, labels = zip(*rng.sample(examples, _BATCH), strict=True)
        mask = [torch.ones_like(row) for row in ids]
        yield (
            pad_sequence(list(ids), batch_first=True),
            pad_sequence(mask, batch_first=True),
            pad_sequence(list(labels), batch_first=True, padding_value=-1),
        )

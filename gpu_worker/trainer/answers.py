"""Answers by generation: greedy, left-padded, many rows at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextStreamer

from gpu_worker.trainer.measure import Report, core, untouched

_CACHE_BYTES = 2 << 30  # keys and values of one batch; fixed, so that a batch is always the same
_BATCH_ROWS = 64
_REPORT_SECONDS = 0.5


def answer(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    report: Report | None = None,
) -> list[str]:
    """The model's answer to each prompt, in the prompts' order, without the end-of-turn tokens.

    Greedy whatever the model's own generation settings say. `report` is called every half second
    and may raise, to stop. Leaves model, tokenizer and random numbers as they were.
    """
    # The model below PEFT's wrapper: the wrapper's own `generate` sets attributes on the base.
    inner = core(model)
    config = _greedy(inner, tokenizer, max_new_tokens)
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    done = 0
    with untouched(model), torch.no_grad():
        while done < len(order):
            size = _rows_at_once(inner, len(prompts[order[done]]) + max_new_tokens)
            rows = order[done : done + size]
            tick = StoppingCriteriaList([_Tick(report, done, len(order))])
            batch = [prompts[row] for row in rows]
            for row, tokens in zip(rows, _generate(inner, batch, config, tick), strict=True):
                answers[row] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            done += len(rows)
            if report is not None:
                report(done, len(order))
    return answers


def stream(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    say: Callable[[str, int], None],
) -> str:
    """The model's answer to one prompt, handed to `say` (text, tokens so far) as it grows.

    Greedy at temperature 0. `say` is called for every token, and may raise, to stop. Leaves model,
    tokenizer and random numbers as they were.
    """
    inner = core(model)
    config = _greedy(inner, tokenizer, max_new_tokens)
    if temperature:
        config.do_sample, config.temperature, config.top_k = True, temperature, 0
    streamer = _Streamer(tokenizer, say)
    ids = torch.tensor([prompt], device=inner.device)
    with untouched(model), torch.no_grad():
        torch.manual_seed(seed)
        inner.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=streamer,
        )
    return streamer.said


class _Streamer(TextStreamer):
    """Text as soon as it is certain: the next token may still change the last word's end."""

    def __init__(self, tokenizer: Any, say: Callable[[str, int], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say
        self._tokens = -1  # the prompt comes first
        self.said = ""

    def put(self, value: Any) -> None:
        self._tokens += 1
        super().put(value)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        if self._tokens:
            self._say("", self._tokens)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: FBT001, FBT002 - its signature
        del stream_end
        self.said += text
        self._say(text, self._tokens)


class _Tick(StoppingCriteria):
    """Reports while a long batch runs, so that a job can be stopped in the middle of one."""

    def __init__(self, report: Report | None, done: int, total: int) -> None:
        self._report, self._done, self._total = report, done, total
        self._last = time.monotonic()

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        del scores
        now = time.monotonic()
        if self._report is not None and now - self._last > _REPORT_SECONDS:
            self._last = now
            self._report(self._done, self._total)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]  # the library's alias


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id
    # What is not said here is filled in from the model's own generation config.
    return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (ends or [0])[0],
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end and the model's: chat models end a turn with a token of its own."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ends = own if isinstance(own, list) else [own]
    return sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})


def _rows_at_once(model: Any, tokens: int) -> int:
    """Rows of `tokens` each whose keys and values fit into the budget; at least one."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return int(max(1, min(_BATCH_ROWS, _CACHE_BYTES // (per_token * tokens))))


def _generate(
    model: Any, prompts: list[list[int]], config: GenerationConfig, tick: StoppingCriteriaList
) -> list[list[int]]:
    """New tokens of each prompt up to the end token; halves the batch when memory runs out."""
    try:
        return _generate_batch(model, prompts, config, tick)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    torch.cuda.empty_cache()  # after the handler: the exception held the tensors
    half = len(prompts) // 2
    return _generate(model, prompts[:half], config, tick) + _generate(
        model, prompts[half:], config, tick
    )


def _generate_batch(
    model: Any, prompts: list[list[int]], config: GenerationConfig, tick: StoppingCriteriaList
) -> list[list[int]]:
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = [[config.pad_token_id] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
    whole = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=config,
        stopping_criteria=tick,
    )
    return [_until_end(row, config.eos_token_id or []) for row in whole[:, longest:].tolist()]


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]

"""The evaluate stage: base and tuned model on the same held-out rows, the base without its adapter.

Nothing is loaded twice: an adapter is turned off and on over the same weights, and a base that was
measured before on the same rows with the same settings comes from the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpu_worker.protocol import Evaluated, EvaluationResult, Run, SampleAnswer
from gpu_worker.trainer.answers import answer
from gpu_worker.trainer.measure import held_out_figures, measure, read_held_out, untouched
from gpu_worker.trainer.preferences import compare
from gpu_worker.trainer.scores import bleu, exact_match, rouge_l
from models.errors import DataError
from models.spec import JobSpec, parse_spec

__all__ = ["evaluate", "held_out_figures"]

_SAMPLES = 50  # people rate them: with ten a win rate could be anything


def evaluate(
    *,
    tuned: Any,
    base_context: Callable[[], AbstractContextManager[Any]],
    tokenizer: Any,
    run: Run,
    report: Callable[[str, int, int], None],
) -> Evaluated:
    """Measure both models and keep the first answers side by side.

    `base_context` yields the base model, and may do so by turning the adapter of `tuned` off.
    `report(what, rows done, rows in all)` may raise, to stop. Raises DataError without held-out
    rows, NonFiniteLossError.
    """
    spec = parse_spec(run.spec)
    rows = _held_out(Path(run.prepared_path))
    with untouched(tuned):
        tuned_result = _evaluate(tuned, tokenizer, rows, spec, partial(_prefixed, report, "tuned"))
        if run.base_evaluation is not None:
            base_result = EvaluationResult.model_validate(run.base_evaluation)
        else:
            with base_context() as base:
                naming = partial(_prefixed, report, "base")
                base_result = _evaluate(base, tokenizer, rows, spec, naming)
        preferences = None
        if spec.method == "dpo":
            preferences = compare(tuned, base_context, rows, beta=spec.dpo_beta, report=report)
    return Evaluated(
        base=base_result,
        tuned=tuned_result,
        base_cached=run.base_evaluation is not None,
        samples=_samples(rows, base_result.answers, tuned_result.answers),
        preferences=preferences,
    )


def _held_out(prepared: Path) -> pa.Table:
    path = prepared / "eval.arrow"
    rows = read_held_out(path) if path.is_file() else None
    if rows is None or not rows.num_rows:
        raise DataError(
            "there are no held-out rows to evaluate on",
            remedy="give eval_dataset or a validation_fraction above 0, or set evaluate to false",
        )
    return rows


def _evaluate(
    model: Any,
    tokenizer: Any,
    rows: pa.Table,
    spec: JobSpec,
    report: Callable[[str, int, int], None],
) -> EvaluationResult:
    began = time.perf_counter()
    measured = measure(model, rows, report=partial(report, "reading held-out rows"))
    asked = rows.slice(0, spec.eval_generate_rows)
    expected = asked["answer"].to_pylist()
    answers = answer(
        model,
        tokenizer,
        asked["prompt_ids"].to_pylist(),
        max_new_tokens=spec.eval_max_new_tokens,
        report=partial(report, "answering held-out rows"),
    )
    return EvaluationResult(
        rows=measured.rows,
        generated_rows=len(answers),
        loss=measured.loss,
        perplexity=measured.perplexity,
        token_accuracy=measured.token_accuracy,
        exact_match=exact_match(answers, expected, spec.eval_answer_pattern) if answers else None,
        bleu=bleu(answers, expected) if answers else None,
        rouge_l=rouge_l(answers, expected) if answers else None,
        seconds=time.perf_counter() - began,
        answers=answers,
    )


def _samples(rows: pa.Table, base: list[str], tuned: list[str]) -> list[SampleAnswer]:
    shown = min(_SAMPLES, len(base), len(tuned))
    first = rows.slice(0, shown)
    texts = zip(first["prompt"].to_pylist(), first["answer"].to_pylist(), base, tuned, strict=False)
    return [
        SampleAnswer(prompt=prompt, expected=expected, base_answer=given, tuned_answer=better)
        for prompt, expected, given, better in texts
    ]


def _prefixed(
    report: Callable[[str, int, int], None], subject: str, what: str, done: int, total: int
) -> None:
    report(f"{subject} model: {what}", done, total)

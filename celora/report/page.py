"""The report as one HTML file: it loads nothing from anywhere, and what users wrote stays text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from celora.cli.output import duration, size
from celora.data_words import histogram_facts, quality_facts, quality_warnings, spread
from celora.report.charts import charts_of, svg
from celora.report.facts import Run, spec_differences
from celora.times import amount, epochs_in_words, stages_in_words

_METRICS = (
    ("loss on held-out rows", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("token accuracy", "token_accuracy", "{:.1%}"),
    ("exact match", "exact_match", "{:.1%}"),
    ("BLEU", "bleu", "{:.1f}"),
    ("ROUGE-L", "rouge_l", "{:.3f}"),
    ("preferred answer more probable", "preference_accuracy", "{:.1%}"),
    ("reward margin", "reward_margin", "{:.4f}"),
    ("reward accuracy", "reward_accuracy", "{:.1%}"),
)
_SAMPLES = 10  # more are kept for `celora rate`


def html(runs: list[Run]) -> str:
    """A report of one run, or of several side by side. Raises SetupError without Matplotlib."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("celora.report").joinpath("page.html").read_text()
    )
    first = runs[0].record
    return template.render(
        title=" · ".join(run.label for run in runs),
        compare=len(runs) > 1,
        runs=[_run(run) for run in runs],
        charts=[(chart.title, Markup(svg(chart))) for chart in charts_of(runs)],  # noqa: S704 (drawn by us)
        differences=[
            (name, [_shown(value) for value in values]) for name, values in spec_differences(runs)
        ]
        if len(runs) > 1
        else [],
        metrics=list(_metric_rows(runs)),
        samples=first.samples[:_SAMPLES] if len(runs) == 1 else [],
        events=first.events if len(runs) == 1 else [],
        spec=json.dumps(first.job.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
        if len(runs) == 1
        else "",
    )


def _run(run: Run) -> dict[str, Any]:
    job, verdict = run.record.job, run.record.job.verdict or {}
    return {
        "label": run.label,
        "facts": list(_facts(run)),
        "data": list(_data(verdict)),
        "warnings": [
            *verdict.get("warnings", []),
            *quality_warnings(verdict.get("quality") or {}),
        ],
        "versions": sorted((job.result or {}).get("versions", {}).items()),
        "error": job.error,
    }


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    job, result = run.record.job, run.record.job.result or {}
    yield "job", job.id
    yield "state", job.state
    yield "who", f"{job.user}, {job.tenant}"
    yield "base model", f"{job.base_model} @ {job.base_revision or 'not resolved'}"
    yield "method", f"{job.method}, {result.get('precision', 'precision not known')}"
    if result.get("trainable_parameters"):
        total = result["total_parameters"]
        yield "trained", f"{result['trainable_parameters']:,} of {total:,} parameters"
    yield "steps", f"{job.step:,} of {job.total_steps or '?'}"
    yield "tokens", f"{job.trained_tokens:,}"
    yield "GPU time", duration(job.gpu_seconds)
    if job.cost is not None:
        yield "cost", amount(job.cost)
    if stages := stages_in_words(run.record.times):
        yield "stages", stages
    if epochs := epochs_in_words(run.record.times):
        yield "epochs", epochs
    if result.get("device"):
        yield "device", str(result["device"])
    if result.get("peak_memory_bytes"):
        yield "peak memory", size(result["peak_memory_bytes"])
    yield "seed", str(job.spec.seed)
    yield "data digest", job.data_digest or "not prepared"
    yield "adapter", job.adapter_url or "none"
    if run.record.adapters:
        yield "registered as", ", ".join(run.record.adapters)
    yield "submitted", _moment(job.created_at)
    yield "finished", _moment(job.finished_at)
    attempts = [a for a in run.record.attempts if a.gpu_id is not None]
    yield "attempts", ", ".join(a.outcome or "running" for a in attempts) or "none"


def _data(verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = {
        "shape": "shape",
        "rows_read": "rows read",
        "rows_train": "rows to train on",
        "rows_eval": "rows held out",
        "truncated": "rows cut off",
        "tokens_train": "tokens",
        "tokens_per_step": "tokens a step",
        "masked_share": "share without loss",
        "packed": "packed",
    }
    for key, words in names.items():
        if verdict.get(key) is not None:
            yield words, _shown(verdict[key])
    for why, count in (verdict.get("dropped") or {}).items():
        yield f"dropped: {why.replace('_', ' ')}", _shown(count)
    if lengths := verdict.get("lengths"):
        yield "tokens a row", spread(lengths)
        yield from histogram_facts(verdict.get("length_histogram") or [])
    if quality := verdict.get("quality"):
        yield from quality_facts(quality)


def _metric_rows(runs: list[Run]) -> Iterator[tuple[str, list[str]]]:
    """One row a metric; for one run base and tuned, for several the base and each tuned one."""
    by_subject = [{e.subject: e for e in run.record.evaluations} for run in runs]
    columns = [by_subject[0].get("base"), *(found.get("tuned") for found in by_subject)]
    if not any(columns):
        return
    for words, name, form in _METRICS:
        values = [None if column is None else getattr(column, name) for column in columns]
        if any(value is not None for value in values):
            yield words, ["" if value is None else form.format(value) for value in values]
    rated = [run.record.win_rate for run in runs]
    if any(one.ratings for one in rated):
        yield "win rate, by people", ["", *(str(one) if one.ratings else "" for one in rated)]


def _moment(moment: datetime | None) -> str:
    return "not yet" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)

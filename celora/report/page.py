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
from celora.data_words import quality_facts, quality_warnings, spread
from celora.report.charts import charts_of, svg
from celora.report.facts import Run, figures_of, spec_differences
from celora.times import amount, epochs_in_words, stages_in_words
from celora.views import Event

_SAMPLES = 10  # more are kept for `celora rate`
_WIDEST_BAR = 60  # percent of its cell: its count stands beside it


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
        figures=figures_of(runs),
        data=_data_rows(runs),
        samples=first.samples[:_SAMPLES] if len(runs) == 1 else [],
        events=_events(first.events) if len(runs) == 1 else [],
        spec=json.dumps(first.job.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
        if len(runs) == 1
        else "",
    )


def _run(run: Run) -> dict[str, Any]:
    job, verdict = run.record.job, run.record.job.verdict or {}
    return {
        "label": run.label,
        "facts": list(_facts(run)),
        "lengths": list(_lengths(verdict)),
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
    if quality := verdict.get("quality"):
        yield from quality_facts(quality)


def _data_rows(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """One row a fact, with the value of each run."""
    facts = [dict(_data(run.record.job.verdict or {})) for run in runs]
    names = dict.fromkeys(name for found in facts for name in found)
    return [(name, [found.get(name, "") for found in facts]) for name in names]


def _lengths(verdict: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Rows by their length: words, percent of the widest bar, count."""
    bins = verdict.get("length_histogram") or []
    most = max((one["rows"] for one in bins), default=0)
    for one in bins:
        share = round(_WIDEST_BAR * one["rows"] / most) if most else 0
        yield f"{one['from']:,}–{one['to']:,}", share, f"{one['rows']:,}"


def _events(events: list[Event]) -> list[tuple[str, Event]]:
    """The day is told once where it is one day."""
    days = {event.created_at.date() for event in events}
    form = "%H:%M:%S" if len(days) == 1 else "%Y-%m-%d %H:%M:%S"
    return [(event.created_at.strftime(form), event) for event in events]


def _moment(moment: datetime | None) -> str:
    return "not yet" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)

"""`celora job`: all that is on record about one job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celora.cli.output import (
    AsJson,
    JobId,
    console,
    duration,
    expected_start,
    facts,
    print_json,
    size,
    state_text,
    table,
)
from celora.times import amount, epochs_in_words, stages_in_words
from models.states import JobState, Purpose

if TYPE_CHECKING:
    from rich.console import Console

    from celora.record import Record
    from celora.views import Job

_SHOWN_CHARACTERS = 300


def job(job: JobId, as_json: AsJson = False) -> None:
    """Show all about one job; --json holds the whole spec, every attempt, metric and event."""
    from celora.record import read

    record = read(job)
    if as_json:
        print_json(record.as_json())
    else:
        _print(record, console())


def _print(record: Record, to: Console) -> None:
    from celora.cli.verdict import print_verdict
    from celora.cli.watch import error_text

    job = record.job
    to.print(state_text(job.state), f"[b]{job.id}[/b]", job.name or "", sep="  ")
    to.print(facts(_facts(record)))
    if job.error:
        to.print(f"\nerror: {error_text(job.error)}", markup=False, style="red")
    if job.result and "export" in job.result:
        from celora.cli.export import report_facts

        to.print("\n[b]export[/b]")
        to.print(facts(report_facts(job.result["export"])))
    if job.verdict and not job.verdict.get("scripted"):
        to.print("\n[b]data[/b]")
        print_verdict(job.verdict, to)
    if record.evaluations:
        to.print("\n[b]evaluation[/b]")
        to.print(evaluation_table(record))
    if record.win_rate.ratings:
        to.print(f"\nwin rate, by people: {record.win_rate}", markup=False)
    for sample in record.samples[:3]:
        to.print()
        to.print(
            facts(
                (name, _short(text))
                for name, text in (
                    ("prompt", sample.prompt),
                    ("expected", sample.expected),
                    ("base", sample.base_answer),
                    ("tuned", sample.tuned_answer),
                )
            )
        )
    to.print("\n[b]events[/b]")
    for event in record.events[-20:]:
        to.print(f"{event.created_at.astimezone():%F %T}  {event.message}", markup=False)
    to.print(f"\nnext: {_next(job)}", markup=False)


def _next(job: Job) -> str:
    """What people do with a job in this state."""
    if job.state is JobState.COMPLETED and job.purpose is Purpose.TUNE:
        return f"`celora chat {job.id}`, `celora export {job.id}`, `celora report {job.id}`"
    if job.state is JobState.FAILED:
        return f"mend what the error tells, then `celora retry {job.id}`, or submit anew"
    if job.state is JobState.PAUSED:
        return f"`celora resume {job.id}`"
    return "`celora jobs` lists all" if job.finished else f"`celora watch {job.id}`"


def evaluation_table(record: Record) -> Any:
    """Base and tuned model side by side."""
    by_subject = {evaluation.subject: evaluation for evaluation in record.evaluations}
    base, tuned = by_subject.get("base"), by_subject.get("tuned")
    rows = []
    for title, name, form in (
        ("loss on held-out rows", "loss", "{:.4f}"),
        ("perplexity", "perplexity", "{:,.2f}"),
        ("token accuracy", "token_accuracy", "{:.1%}"),
        ("exact match", "exact_match", "{:.1%}"),
        ("BLEU", "bleu", "{:.1f}"),
        ("ROUGE-L", "rouge_l", "{:.3f}"),
        ("preferred answer more probable", "preference_accuracy", "{:.1%}"),
        ("reward margin", "reward_margin", "{:.4f}"),
        ("reward accuracy", "reward_accuracy", "{:.1%}"),
    ):
        values = [None if one is None else getattr(one, name) for one in (base, tuned)]
        if any(value is not None for value in values):
            rows.append((title, *("–" if v is None else form.format(v) for v in values)))
    return table(["", "base", "tuned"], rows, right="base tuned")


def _facts(record: Record) -> list[tuple[str, str]]:
    job = record.job
    found = [
        ("method", f"{job.method}, base {job.base_model} ({job.base_revision or 'not resolved'})"),
        ("data", job.spec.dataset),
        ("tenant, user", f"{job.tenant}, {job.user}"),
        ("purpose", f"{job.purpose}{f', of {job.source_job}' if job.source_job else ''}"),
    ]
    if not job.finished:
        found.append(("stage", f"{job.stage}{f': {job.activity}' if job.activity else ''}"))
        found.append(("why", record.why.sentence))
        if record.why.expected_start_at is not None:
            found.append(("expected start", expected_start(record.why)))
    if job.total_steps:
        loss = "" if job.train_loss is None else f", loss {job.train_loss:.4g}"
        found.append(("steps", f"{job.step} of {job.total_steps}{loss}"))
    if job.gpu_seconds:
        cost = "" if job.cost is None else f", cost {amount(job.cost)}"
        found.append(("device time", f"{duration(job.gpu_seconds)}{cost}"))
    if job.trained_tokens:
        found.append(("tokens", f"{job.trained_tokens:,}"))
    if stages := stages_in_words(record.times):
        found.append(("stages", stages))
    if epochs := epochs_in_words(record.times):
        found.append(("epochs", epochs))
    found += _attempts(record)
    if record.checkpoints:
        newest = record.checkpoints[0]
        found.append(
            (
                "checkpoints",
                f"{len(record.checkpoints)}, newest at step {newest.step}: {newest.url}",
            )
        )
    found += [(one.kind, f"{one.url} ({size(one.size_bytes)})") for one in record.artifacts]
    found += [("registered as", reference) for reference in record.adapters]
    return found


def _attempts(record: Record) -> Iterator[tuple[str, str]]:
    """Those on devices apart from the preparation, which needs none and is rarely asked about."""
    for name, of_device in (("preparations", False), ("attempts", True)):
        tries = [one for one in record.attempts if (one.gpu_id is not None) is of_device]
        if tries and (worker := tries[-1].worker):
            yield name, f"{len(tries)}, {'the last ' if len(tries) > 1 else ''}on {worker}"


def _short(text: str | None) -> str:
    """The beginning: all of it is in --json."""
    text = (text or "").strip()
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"

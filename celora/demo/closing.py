"""The demo's last act: base against tuned, three answers side by side, and what to do next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celora.cli.job import evaluation_table
from celora.cli.output import duration, table
from celora.cli.watch import error_text
from celora.demo.scene import Scene
from celora.record import Record, read
from models.settings import settings
from models.states import JobState

if TYPE_CHECKING:
    from celora.views import Job, Sample


def show_result(job: Job, scene: Scene, began: float) -> int:
    """Print it; 0 when the model learned what the demo promises, else 1."""
    from celora.demo import BASE_BELOW, TUNED_FROM

    record = read(job.id)
    if job.state is not JobState.COMPLETED:
        scene.say(f"the job is {job.state}" + (f": {error_text(job.error)}" if job.error else ""))
        return 1
    scene.console.print(evaluation_table(record), "")
    scene.console.print(_answers(record.samples), "")
    scene.say(f"adapter      {job.adapter_url}")
    scene.say(f"took         {duration(time.monotonic() - began)}")
    _what_next(job, scene)
    base, tuned = (_exact_match(record, subject) for subject in ("base", "tuned"))
    if base is not None and tuned is not None and base < BASE_BELOW and tuned >= TUNED_FROM:
        return 0
    scene.say(
        f"The model has not learned what it should: exact match went from {base} to {tuned},"
        f" and should go from below {BASE_BELOW} to at least {TUNED_FROM}."
    )
    return 1


def _answers(samples: list[Sample]) -> object:
    return table(
        ["asked", "expected", "base model", "tuned model"],
        (
            (
                _question(sample.prompt),
                sample.expected,
                _short(sample.base_answer),
                _short(sample.tuned_answer),
            )
            for sample in samples[:3]
        ),
    )


def _question(prompt: str) -> str:
    """The row's own words, without the layout around them."""
    return prompt.partition("### Input:")[2].partition("### Response:")[0].strip() or prompt


def _short(answer: str | None) -> str:
    text = " ".join((answer or "").split())
    return text if len(text) <= 70 else f"{text[:69]}…"  # noqa: PLR2004 (a column's width)


def _what_next(job: Job, scene: Scene) -> None:
    home = settings().at_home()
    scene.say("")
    scene.say("What to run next:")
    for line, meaning in (
        (f"export CELORA_HOME={home}", "the demo's folder; leave it out for your own ~/.celora"),
        ("celora up", "all of Celora on this machine, until Ctrl-C"),
        (f"celora job {job.id}", "in another terminal: all about this job"),
        ("celora submit --base-model … --dataset … --watch", "a job of your own"),
    ):
        scene.say(f"  {line:<50}  # {meaning}")


def _exact_match(record: Record, subject: str) -> float | None:
    return next((e.exact_match for e in record.evaluations if e.subject == subject), None)

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

_SHOWN = 120  # characters of an answer


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
    _what_next(scene)
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
        ["asked", "base model", "tuned model"],
        (
            (_question(sample.prompt), _short(sample.base_answer), _marked(sample))
            for sample in samples[:3]
        ),
    )


def _marked(sample: Sample) -> str:
    """The tuned model's answer, and whether it is the expected one."""
    if (sample.tuned_answer or "").strip() == sample.expected.strip():
        return f"✓ {_short(sample.tuned_answer)}"
    return f"✗ {_short(sample.tuned_answer)}\n(expected {_short(sample.expected)})"


def _question(prompt: str) -> str:
    """The row's own words, without the layout around them."""
    return prompt.partition("### Input:")[2].partition("### Response:")[0].strip() or prompt


def _short(answer: str | None) -> str:
    text = " ".join((answer or "").split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _what_next(scene: Scene) -> None:
    home = settings().at_home()
    scene.say("")
    scene.say("What to run next:")
    for line, meaning in (
        (f"export CELORA_HOME={home}", "the demo's folder"),
        ("celora up", "all of it, until Ctrl-C"),
        ("celora job last", "in another terminal"),
        ("celora submit --base-model … --dataset … --watch", "a job of your own"),
    ):
        scene.say(f"  {line:<48}  # {meaning}")


def _exact_match(record: Record, subject: str) -> float | None:
    return next((e.exact_match for e in record.evaluations if e.subject == subject), None)

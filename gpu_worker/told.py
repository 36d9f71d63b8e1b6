"""What a stage tells of its end to those who watch the broker. Postgres has it already: nothing is
decided by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.duration import duration
from models.states import JobState, Outcome
from models.tables import Job

_LONGEST = 300
_SCORES = (("exact match", "exact_match"), ("token accuracy", "token_accuracy"))


@dataclass(frozen=True, slots=True)
class Told:
    """True when the stage is done: its successor may run, where there is one."""

    done: bool
    state: JobState | None  # of the job since then; none: this worker did not end anything
    text: str

    def __bool__(self) -> bool:
        return self.done


def dropped(why: str) -> Told:
    """The stage did not run here, or its end was not this worker's to write."""
    return Told(done=False, state=None, text=_short(why))


def trained(losses: Sequence[float], steps: int, seconds: float, worker: str) -> Told:
    """`losses` are those of the job's first and last step, where there are any."""
    words = [_loss("loss", losses), _steps(steps), _where(seconds, worker)]
    return Told(done=True, state=JobState.RUNNING, text="trained: " + _joined(words))


def ended(
    job: Job, outcome: Outcome, reason: str | None, losses: Sequence[float], worker: str
) -> Told:
    """`job` as it stands after the attempt's end."""
    state = JobState(job.state)
    if state is JobState.COMPLETED:
        words = [_quality(job, losses), _steps(job.step), _where(job.gpu_seconds, worker)]
        text = "completed: " + _joined(words)
    elif state is JobState.FAILED:
        error = job.error or {}
        text = f"{error.get('code') or 'failed'}: {error.get('message') or reason or outcome}"
    else:
        text = f"{outcome}: {reason}" if reason else str(outcome)
        text += f"; the job is {state}"
    return Told(done=outcome is Outcome.COMPLETED, state=state, text=_short(text))


def prepared(job: Job, verdict: dict[str, Any], seconds: float, worker: str) -> Told:
    found = [
        f"{verdict[key]:,} {words}"
        for key, words in (
            ("rows_train", "rows to train on"),
            ("rows_eval", "held out"),
            ("tokens_train", "tokens"),
            ("total_steps", "steps"),
        )
        if verdict.get(key)
    ]
    text = "prepared: " + _joined([*found, _where(seconds, worker)])
    return Told(done=True, state=JobState(job.state), text=_short(text))


def _quality(job: Job, losses: Sequence[float]) -> str:
    """Base against tuned model where it was evaluated, else how the training loss fell."""
    result = job.result or {}
    if "export" in result:
        return f"exported as {result['export']['format']}"
    if "chat" in result:
        return f"a chat of {result['chat'].get('turns', 0)} turns"
    evaluation = result.get("evaluation")
    if not evaluation:
        return _loss("loss", losses)
    base, tuned = evaluation["base"], evaluation["tuned"]
    words = [_loss("loss", [base["loss"], tuned["loss"]])]
    for title, key in _SCORES:
        if base.get(key) is not None and tuned.get(key) is not None:
            words.append(f"{title} {base[key]:.0%} → {tuned[key]:.0%}".replace("%", " %"))
            break
    return _joined(words)


def _loss(title: str, losses: Sequence[float]) -> str:
    return f"{title} " + " → ".join(f"{loss:.4g}" for loss in losses) if losses else ""


def _steps(steps: int) -> str:
    return f"{steps:,} steps" if steps else ""


def _where(seconds: float, worker: str) -> str:
    return f"{duration(seconds)} on {worker}"


def _joined(words: Sequence[str]) -> str:
    return ", ".join(word for word in words if word)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

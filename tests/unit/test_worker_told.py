"""What Flower shows of a task: whose it is, and in one line what came of it."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import Ignore

from gpu_worker import told
from gpu_worker.told import Told
from models.states import JobState, Outcome
from models.tables import Job, Tenant
from tasks import shown
from tasks.stage_task import StageFailed, StageLeft, StageTask, answer

WORKER = "gpu0@host"
EVALUATION = {
    "base": {"loss": 2.31, "exact_match": 0.12, "token_accuracy": 0.4},
    "tuned": {"loss": 0.42, "exact_match": 0.81, "token_accuracy": 0.9},
}


def job(state: JobState, **fields: Any) -> Job:
    return Job(
        **{"state": state, "step": 1200, "gpu_seconds": 840.0, "tenant": Tenant(name="physics")}
        | fields
    )


def test_a_completed_job_is_summed_up() -> None:
    done = job(JobState.COMPLETED, result={"evaluation": EVALUATION})
    said = told.ended(done, Outcome.COMPLETED, None, [], WORKER)
    assert said
    assert said.text == (
        "completed: loss 2.31 → 0.42, exact match 12 % → 81 %, 1,200 steps, 14 min on gpu0@host"
    )


def test_without_answers_the_accuracy_counts_and_without_an_evaluation_the_training() -> None:
    plain = {who: found | {"exact_match": None} for who, found in EVALUATION.items()}
    done = job(JobState.COMPLETED, result={"evaluation": plain})
    text = told.ended(done, Outcome.COMPLETED, None, [], WORKER).text
    assert "token accuracy 40 % → 90 %" in text
    done = job(JobState.COMPLETED, result={})
    text = told.ended(done, Outcome.COMPLETED, None, [3.0, 1.25], WORKER).text
    assert text == "completed: loss 3 → 1.25, 1,200 steps, 14 min on gpu0@host"
    bare = job(JobState.COMPLETED, step=0)
    text = told.ended(bare, Outcome.COMPLETED, None, [], WORKER).text
    assert text == "completed: 14 min on gpu0@host"


def test_a_failure_is_its_cause_in_a_line() -> None:
    error = {"code": "out_of_memory", "message": "no room\nfor " + "x" * 400}
    said = told.ended(job(JobState.FAILED, error=error), Outcome.FAILED, "no room", [], WORKER)
    assert not said
    assert said.text.startswith("out_of_memory: no room for x")
    assert len(said.text) == 300


def test_what_was_trained_and_what_was_prepared() -> None:
    assert told.trained([2.5, 0.5], 10, 61, WORKER).text == (
        "trained: loss 2.5 → 0.5, 10 steps, 1 min 1 s on gpu0@host"
    )
    verdict = {"rows_train": 7100, "rows_eval": 373, "tokens_train": 1_200_000}
    assert told.prepared(job(JobState.QUEUED), verdict, 8, "cpu@host").text == (
        "prepared: 7,100 rows to train on, 373 held out, 1,200,000 tokens, 8 s on cpu@host"
    )


@pytest.mark.parametrize(
    ("state", "outcome", "event"),
    [
        (JobState.CANCELLED, Outcome.CANCELLED, "task-revoked"),
        (JobState.PAUSED, Outcome.PAUSED, "task-revoked"),
        (JobState.QUEUED, Outcome.PREEMPTED, "task-retried"),
        (JobState.QUEUED, Outcome.LOST, "task-retried"),
    ],
)
def test_a_stage_that_did_not_finish_stops_the_chain_and_says_why(
    state: JobState, outcome: Outcome, event: str
) -> None:
    said = told.ended(job(state), outcome, "why", [], WORKER)
    with pytest.raises(Ignore) as left:
        answer(said)
    assert isinstance(left.value, StageLeft)
    assert (left.value.event, left.value.text) == (
        event,
        f"{outcome}: why; the job is {state}",
    )


def test_a_dropped_ticket_is_rejected_and_a_failed_job_is_a_failure() -> None:
    with pytest.raises(StageLeft) as left:
        answer(told.dropped("late"))
    assert left.value.event == "task-rejected"
    with pytest.raises(StageFailed, match="no room"):
        answer(Told(done=False, state=JobState.FAILED, text="no room"))
    assert answer(Told(done=True, state=JobState.COMPLETED, text="well")) == "well"
    assert StageFailed in StageTask.throws


@pytest.mark.parametrize(
    ("base_model", "seen"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("/srv/models/tiny/", "tiny"),
        ("https://user:secret@host/models/tiny.tar?signature=abc", "tiny.tar"),
        ("s3://bucket/tiny", "tiny"),
        ("s3://bucket", "base model"),
        ("scripted:?steps=3", "scripted"),
    ],
)
def test_whose_it_is_without_paths_and_keys(base_model: str, seen: str) -> None:
    waiting = job(JobState.QUEUED, base_model=base_model, method="qlora", name="support-bot")
    assert shown.of(waiting) == f"physics: qlora on {seen} (support-bot)"

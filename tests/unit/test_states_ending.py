"""Where the end of an attempt leaves its job."""

from __future__ import annotations

import itertools

import pytest

from models.ending import Landing, following, land, waiting_state
from models.states import JobState, Outcome, Stage, StopReason, may_become

MAX_LOSSES = 3
_RESUMED = [stage for stage in Stage if stage is not Stage.GENERATE]


def landed(
    outcome: Outcome,
    stage: Stage = Stage.TRAIN,
    *,
    evaluate: bool = True,
    stop: StopReason | None = None,
    losses: int = 0,
) -> Landing:
    return land(
        outcome, stage=stage, evaluate=evaluate, stop=stop, losses=losses, max_losses=MAX_LOSSES
    )


@pytest.mark.parametrize(
    ("stage", "evaluate", "state", "next_stage"),
    [
        (Stage.PREPROCESS, True, JobState.QUEUED, Stage.TRAIN),
        (Stage.PREPROCESS, False, JobState.QUEUED, Stage.TRAIN),
        (Stage.TRAIN, True, JobState.QUEUED, Stage.EVALUATE),
        (Stage.TRAIN, False, JobState.COMPLETED, Stage.TRAIN),
        (Stage.EVALUATE, True, JobState.COMPLETED, Stage.EVALUATE),
        (Stage.EXPORT, False, JobState.COMPLETED, Stage.EXPORT),
        (Stage.GENERATE, False, JobState.COMPLETED, Stage.GENERATE),
    ],
)
def test_a_completed_stage_leads_on(
    stage: Stage,
    evaluate: bool,  # noqa: FBT001 (parametrised)
    state: JobState,
    next_stage: Stage,
) -> None:
    assert landed(Outcome.COMPLETED, stage, evaluate=evaluate, losses=2) == Landing(
        state, next_stage, 0
    )


@pytest.mark.parametrize(
    "outcome", [Outcome.PREEMPTED, Outcome.DRAINED, Outcome.WITHDRAWN, Outcome.RETRIED]
)
@pytest.mark.parametrize("stage", _RESUMED)
def test_an_interrupted_stage_waits_again_and_is_no_loss(outcome: Outcome, stage: Stage) -> None:
    assert landed(outcome, stage, losses=2) == Landing(waiting_state(stage), stage, 2)


@pytest.mark.parametrize("stage", _RESUMED)
def test_losses_end_in_failure_at_the_limit(stage: Stage) -> None:
    assert landed(Outcome.LOST, stage, losses=1) == Landing(waiting_state(stage), stage, 2)
    assert landed(Outcome.LOST, stage, losses=2) == Landing(JobState.FAILED, stage, 3)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.LOST, JobState.FAILED),
        (Outcome.FAILED, JobState.FAILED),
        (Outcome.PAUSED, JobState.CANCELLED),
        (Outcome.PREEMPTED, JobState.CANCELLED),
        (Outcome.DRAINED, JobState.CANCELLED),
        (Outcome.WITHDRAWN, JobState.QUEUED),
    ],
)
def test_a_chat_that_was_begun_is_not_taken_up_again(outcome: Outcome, state: JobState) -> None:
    assert landed(outcome, Stage.GENERATE).state is state
    assert landed(outcome, Stage.GENERATE, stop=StopReason.CANCEL).state is JobState.CANCELLED


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.COMPLETED}))
def test_a_cancel_holds_however_the_attempt_ends(outcome: Outcome) -> None:
    assert landed(outcome, stop=StopReason.CANCEL, losses=2).state is JobState.CANCELLED


def test_a_job_that_completed_first_stays_completed() -> None:
    for stop in StopReason:
        assert landed(Outcome.COMPLETED, Stage.EVALUATE, stop=stop).state is JobState.COMPLETED


def test_a_stop_between_stages_holds_after_a_completed_stage() -> None:
    cancelled = landed(Outcome.COMPLETED, Stage.PREPROCESS, stop=StopReason.CANCEL)
    assert cancelled.state is JobState.CANCELLED
    paused = landed(Outcome.COMPLETED, Stage.PREPROCESS, stop=StopReason.PAUSE)
    assert paused == Landing(JobState.PAUSED, Stage.TRAIN, 0)


def test_a_pause_survives_a_loss_and_a_preemption_but_not_a_failure() -> None:
    for outcome in (Outcome.LOST, Outcome.PREEMPTED, Outcome.DRAINED, Outcome.RETRIED):
        assert landed(outcome, stop=StopReason.PAUSE, losses=2).state is JobState.PAUSED
    assert landed(Outcome.FAILED, stop=StopReason.PAUSE).state is JobState.FAILED


def test_a_pause_that_was_taken_back_queues_the_job_again() -> None:
    assert landed(Outcome.PAUSED, stop=None).state is JobState.QUEUED
    assert landed(Outcome.PAUSED, stop=StopReason.PAUSE).state is JobState.PAUSED


def test_every_landing_is_an_edge_of_the_state_machine() -> None:
    of_unclaimed = {Outcome.WITHDRAWN, Outcome.CANCELLED, Outcome.PAUSED, Outcome.PREEMPTED}
    every = itertools.product(Outcome, Stage, [None, *StopReason], range(MAX_LOSSES), [True, False])
    for outcome, stage, stop, losses, evaluate in every:
        landing = landed(outcome, stage, evaluate=evaluate, stop=stop, losses=losses)
        before = [JobState.PENDING] if stage is Stage.PREPROCESS else [JobState.RUNNING]
        if outcome in of_unclaimed and stage is not Stage.PREPROCESS:
            before.append(JobState.QUEUED)
        for state in before:
            assert landing.state is state or may_become(state, landing.state)


def test_stages_follow_each_other_once() -> None:
    assert following(Stage.PREPROCESS, evaluate=False) is Stage.TRAIN
    assert following(Stage.TRAIN, evaluate=True) is Stage.EVALUATE
    assert following(Stage.TRAIN, evaluate=False) is None
    assert following(Stage.EVALUATE, evaluate=True) is None

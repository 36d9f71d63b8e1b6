"""Where the end of an attempt leaves its job: the one place that decides it, without a database."""

from __future__ import annotations

from dataclasses import dataclass

from models.states import JobState, Outcome, Stage, StopReason


@dataclass(frozen=True, slots=True)
class Landing:
    """The job after an attempt has ended; `stage` is the first one that is not finished."""

    state: JobState
    stage: Stage
    losses: int


def waiting_state(stage: Stage) -> JobState:
    """Where a job waits for `stage`: unprepared data waits for a CPU worker, the rest for a GPU."""
    return JobState.PENDING if stage is Stage.PREPROCESS else JobState.QUEUED


def following(stage: Stage, *, evaluate: bool) -> Stage | None:
    """The stage after `stage`, none after the last; `evaluate` is the specification's wish."""
    if stage is Stage.PREPROCESS:
        return Stage.TRAIN
    return Stage.EVALUATE if stage is Stage.TRAIN and evaluate else None


def land(
    outcome: Outcome,
    *,
    stage: Stage,
    evaluate: bool,
    stop: StopReason | None,
    losses: int,
    max_losses: int,
) -> Landing:
    """Decide the job's next state.

    A cancel that was asked for holds however the attempt ends, short of completing the whole job;
    a pause likewise, but a failure stays a failure. A pause that was taken back while the trainer
    was already stopping for it (`outcome` is paused, `stop` is not) puts the job back in the queue.
    """
    if outcome is Outcome.COMPLETED:
        after = following(stage, evaluate=evaluate)
        if after is None:
            return Landing(JobState.COMPLETED, stage, 0)
        stage, losses = after, 0
    elif outcome is Outcome.LOST:
        losses += 1

    state = _state(outcome, stage, stop, lost=losses >= max_losses)
    return Landing(state, stage, losses)


def _state(outcome: Outcome, stage: Stage, stop: StopReason | None, *, lost: bool) -> JobState:
    """`lost`: as often as may be."""
    if stop is StopReason.CANCEL or outcome is Outcome.CANCELLED:
        return JobState.CANCELLED
    if stage is Stage.GENERATE and outcome in _ENDS_A_CHAT:
        return _ENDS_A_CHAT[outcome]
    if outcome is Outcome.FAILED:
        return JobState.FAILED
    if stop is StopReason.PAUSE:
        return JobState.PAUSED
    if outcome is Outcome.LOST and lost:
        return JobState.FAILED
    return waiting_state(stage)


# A conversation is not taken up again elsewhere: who was talking is told, and may begin anew.
_ENDS_A_CHAT = {
    Outcome.LOST: JobState.FAILED,
    Outcome.PAUSED: JobState.CANCELLED,
    Outcome.PREEMPTED: JobState.CANCELLED,
    Outcome.DRAINED: JobState.CANCELLED,
}

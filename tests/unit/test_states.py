"""Every pair of job states: the edges that exist, and all that do not."""

from __future__ import annotations

import itertools

import pytest

from models.errors import StateError
from models.states import EDGES, TERMINAL, JobState, may_become, require_edge

# Written out once more, by hand: a change of the state machine must be meant.
ALLOWED = {
    ("pending", "queued"),
    ("pending", "failed"),
    ("pending", "cancelled"),
    ("pending", "paused"),
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("queued", "paused"),
    ("running", "queued"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "paused"),
    ("paused", "pending"),
    ("paused", "queued"),
    ("paused", "cancelled"),
    ("failed", "pending"),
    ("failed", "queued"),
}


@pytest.mark.parametrize(("current", "new"), list(itertools.product(JobState, repeat=2)))
def test_edge(current: JobState, new: JobState) -> None:
    if (current, new) in ALLOWED:
        assert may_become(current, new)
        require_edge(current, new)
    else:
        assert not may_become(current, new)
        with pytest.raises(StateError, match=f"{current} cannot become {new}"):
            require_edge(current, new)


def test_every_state_has_its_edges_listed() -> None:
    assert set(EDGES) == set(JobState)


def test_only_a_failed_job_leaves_a_terminal_state() -> None:
    assert {state for state in TERMINAL if EDGES[state]} == {JobState.FAILED}


def test_every_job_can_still_end() -> None:
    """From every state that is not terminal a path leads to `cancelled` in one step."""
    for state in set(JobState) - TERMINAL:
        assert may_become(state, JobState.CANCELLED)

"""How long an attempt goes on asking a hub that does not answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpu_worker.patience import patiently
from models.errors import BaseModelError, UnavailableError
from tests.environment import variables


class Hub:
    """Does not answer the first times."""

    def __init__(self, away: int) -> None:
        self.away, self.asked = away, 0

    def __call__(self) -> str:
        self.asked += 1
        if self.asked <= self.away:
            raise UnavailableError("the hub did not answer")
        return "model"


class Clock:
    """Waits for nothing, and keeps count."""

    def __init__(self, *, over_after: int | None = None) -> None:
        self.pauses: list[float] = []
        self.over_after = over_after

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return len(self.pauses) == self.over_after


def ask(fetch: Callable[[], str], clock: Clock, seconds: float) -> str:
    said: list[str] = []
    with variables(CELORA_FETCH_PATIENCE_SECONDS=str(seconds)):
        return patiently(fetch, say=said.append, wait=clock.wait)


def test_a_hub_that_comes_back_in_time_costs_nothing() -> None:
    clock = Clock()
    assert ask(Hub(away=6), clock, 600) == "model"
    assert clock.pauses == [1, 2, 4, 8, 15, 15]


def test_one_that_stays_away_is_given_up() -> None:
    hub = Hub(away=100)
    with pytest.raises(UnavailableError):
        ask(hub, Clock(), 0)
    assert hub.asked == 1


def test_nobody_waits_for_what_nobody_needs() -> None:
    hub = Hub(away=100)
    with pytest.raises(UnavailableError):
        ask(hub, Clock(over_after=2), 600)
    assert hub.asked == 2


def test_an_answer_is_an_answer() -> None:
    def no() -> str:
        raise BaseModelError("there is no such model")

    clock = Clock()
    with pytest.raises(BaseModelError):
        ask(no, clock, 600)
    assert not clock.pauses

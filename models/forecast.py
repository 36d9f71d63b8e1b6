"""Who will start when: the dispatcher's rules played forward on what is known, without a database.

Urgent jobs first; then the tenant with the smallest share of its weight; within it the earliest
turn, with the short head start for a base model that is loaded. Limits, what jobs ask of a GPU, the
charge per placement and the decay of use are the dispatcher's own. What it cannot know is left out:
jobs that come later, failures, and urgent jobs taking a GPU by preemption.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from models.paces import Basis, Estimate, Group

_LOOK_AHEAD = 8  # as models/queries/placement.py
# Shares are compared at each placement, so what many tenants and GPUs cost is bounded by this.
_COMPARISONS = 200_000


@dataclass(slots=True, eq=False)
class Waiter:
    id: str
    turn: datetime
    base_model: str
    work: Estimate


@dataclass(slots=True)
class Party:
    """A tenant or a user, with what limits it. Times are seconds from now."""

    max_running: float = math.inf
    seconds_allowed: float = math.inf  # of GPU time until the month ends
    seconds_spent: float = 0.0  # by attempts that have ended
    shut: bool = False  # by a limit that running jobs do not change
    starts: list[float] = field(default_factory=list)  # of those that run

    def may_start(self, now: float) -> bool:
        if self.shut or len(self.starts) >= self.max_running:
            return False
        if self.seconds_allowed == math.inf:
            return True
        spent = self.seconds_spent + sum(max(0.0, now - start) for start in self.starts)
        return spent < self.seconds_allowed

    def begin(self, start: float) -> None:
        self.starts.append(start)

    def end(self, start: float, now: float) -> None:
        self.starts.remove(start)
        self.seconds_spent += now - start


@dataclass(slots=True)
class Sharer(Party):
    """A tenant: `used` is its decayed use, as it would be now; `charge` what a placement counts."""

    id: int = 0
    weight: float = 1.0
    used: float = 0.0
    charge: float = 0.0
    charge_is_measured: bool = True

    def share(self, now: float, decay: float) -> float:
        live = 0.0
        for start in self.starts:
            live += max(now - start, self.charge)
        return (self.used * decay + live) / self.weight

    def settle(self, seconds: float, decay: float) -> None:
        self.used += seconds / decay
        if self.charge_is_measured:
            self.charge += 0.1 * (seconds - self.charge)
        else:
            self.charge, self.charge_is_measured = seconds, True


@dataclass(slots=True)
class Slot:
    """A GPU that takes jobs. `busy` until then with a job of these parties, since `start`."""

    id: int
    needs: frozenset[int]  # what it has of what jobs ask for
    memory_bytes: int = 0
    labels: int = 0
    base_model: str | None = None
    busy: float = 0.0
    start: float = 0.0
    sharer: Sharer | None = None
    user: Party | None = None
    work: Estimate | None = None


@dataclass(slots=True)
class Lane:
    """One queue, in order of turns. `more` gives its next jobs when these are taken."""

    id: int
    sharer: Sharer
    user: Party
    need: int
    urgent: bool
    waiters: list[Waiter]
    more: Callable[[], list[Waiter]] | None = None
    apart: bool = False  # no dispatcher places its jobs: each has a pod of its own

    def front(self) -> list[Waiter]:
        while len(self.waiters) < _LOOK_AHEAD and self.more is not None:
            found = self.more()
            self.waiters += found
            if not found:
                self.more = None
        return self.waiters[:_LOOK_AHEAD]


@dataclass(frozen=True, slots=True)
class Placed:
    waiter: Waiter
    lane: Lane
    slot_id: int | None  # the GPU it will start on
    position: int  # from 1
    start: float | None  # seconds from now; none where only the order is known
    ended: dict[Basis, int]  # the jobs whose end it waited for, by what their length rests on
    finished: dict[Basis, int]  # how many finished jobs those lengths rest on


@dataclass(slots=True, kw_only=True)
class Play:
    """The pool from now on. `order_only`: no GPU takes jobs; the order, as if all came free now."""

    slots: list[Slot]
    lanes: list[Lane]
    half_life: float
    head_start: timedelta
    turnover: float  # between the end of one job and the start of the next
    order_only: bool = False
    now: float = 0.0
    placed: int = 0
    cut: bool = False  # it ended because it had gone on long enough: jobs may be left
    _free: list[Slot] = field(default_factory=list)
    _ends: list[tuple[float, int, Slot]] = field(default_factory=list)
    _ended: Counter[Basis] = field(default_factory=Counter)
    _groups: set[Group] = field(default_factory=set)
    _finished: Counter[Basis] = field(default_factory=Counter)
    _by_sharer: dict[bool, dict[int, list[Lane]]] = field(default_factory=dict)

    def run(self, most: int) -> Iterator[Placed]:
        """The next `most` placements, fewer where there are many tenants or GPUs."""
        self._begin()
        width = sum(map(len, self._by_sharer.values())) + len(self.slots) + 1
        most = min(most, max(100, _COMPARISONS // width))
        while self.placed < most:
            best = self._best()
            if best is not None:
                yield self._place(*best)
            elif not self._advance():
                return
        self.cut = True

    def _begin(self) -> None:
        self._by_sharer = {True: {}, False: {}}
        for lane in self.lanes:
            if lane.front():
                self._by_sharer[lane.urgent].setdefault(lane.sharer.id, []).append(lane)
        for slot in self.slots:
            if slot.sharer is not None and slot.user is not None:
                slot.sharer.begin(slot.start)
                slot.user.begin(slot.start)
            heapq.heappush(self._ends, (slot.busy, slot.id, slot))
        if not self.order_only:
            self._advance()

    def _advance(self) -> bool:
        """To the next moment at which a GPU comes free; False when there is none."""
        if not self._ends:
            return False
        self.now = max(self.now, self._ends[0][0])
        while self._ends and self._ends[0][0] <= self.now:
            slot = heapq.heappop(self._ends)[2]
            self._release(slot)
            self._free.append(slot)
        self._free.sort(key=lambda slot: slot.id)
        return True

    def _release(self, slot: Slot) -> None:
        if slot.sharer is not None and slot.user is not None:
            slot.sharer.end(slot.start, self.now)
            slot.user.end(slot.start, self.now)
            slot.sharer.settle(self.now - slot.start, self._decay())
        if slot.work is not None:
            self._ended[slot.work.basis] += 1
            if slot.work.group not in self._groups:
                self._groups.add(slot.work.group)
                self._finished[slot.work.basis] += slot.work.finished
        slot.sharer = slot.user = slot.work = None

    def _decay(self) -> float:
        return float(0.5 ** min(100.0, self.now / self.half_life))

    def _best(self) -> tuple[Lane, Waiter] | None:
        if not self._free and not self.order_only:
            return None
        needs = frozenset().union(*(slot.needs for slot in self._free))
        decay = self._decay()
        for urgent in (True, False):
            queue = [
                (lanes[0].sharer.share(self.now, decay), sharer_id, lanes)
                for sharer_id, lanes in self._by_sharer[urgent].items()
                if self.order_only or lanes[0].sharer.may_start(self.now)
            ]
            for _, sharer_id, lanes in _in_order(queue):
                if best := self._best_of(lanes, needs):
                    return best
                if not any(lane.front() for lane in lanes):
                    del self._by_sharer[urgent][sharer_id]
        return None

    def _best_of(self, lanes: list[Lane], needs: frozenset[int]) -> tuple[Lane, Waiter] | None:
        """The first of a tenant, or one just behind it that finds its base model loaded."""
        front = [
            (waiter.turn, waiter.id, lane, waiter)
            for lane in lanes
            if not lane.apart
            and (self.order_only or (lane.need in needs and lane.user.may_start(self.now)))
            for waiter in lane.front()
        ]
        if not front:
            return None
        if len(lanes) > 1:
            front = heapq.nsmallest(_LOOK_AHEAD, front, key=lambda one: one[:2])
        latest = front[0][0] + self.head_start
        loaded = {slot.base_model for slot in self._free}
        for turn, _, lane, waiter in front:
            if turn > latest:
                break
            if waiter.base_model in loaded and self._is_loaded(lane.need, waiter.base_model):
                return lane, waiter
        return front[0][2:]

    def _is_loaded(self, need: int, base_model: str) -> bool:
        return any(slot.base_model == base_model and need in slot.needs for slot in self._free)

    def _place(self, lane: Lane, waiter: Waiter) -> Placed:
        lane.waiters.remove(waiter)
        self.placed += 1
        slot: Slot | None = None
        if self.order_only:
            lane.sharer.begin(self.now)
        else:
            slot = self._best_slot(lane.need, waiter.base_model)
            self._occupy(slot, lane, waiter)
        return Placed(
            waiter,
            lane,
            None if slot is None else slot.id,
            self.placed,
            None if slot is None else slot.start,
            dict(self._ended),
            dict(self._finished),
        )

    def _best_slot(self, need: int, base_model: str) -> Slot:
        return min(
            (slot for slot in self._free if need in slot.needs),
            key=lambda slot: (
                slot.base_model != base_model,
                slot.memory_bytes,
                slot.labels,
                slot.base_model is not None,
            ),
        )

    def _occupy(self, slot: Slot, lane: Lane, waiter: Waiter) -> None:
        self._free.remove(slot)
        slot.start = self.now + self.turnover
        slot.busy = slot.start + waiter.work.seconds
        slot.sharer, slot.user, slot.work = lane.sharer, lane.user, waiter.work
        slot.base_model = waiter.base_model
        lane.sharer.begin(slot.start)
        lane.user.begin(slot.start)
        heapq.heappush(self._ends, (slot.busy, slot.id, slot))


def _in_order(
    queue: list[tuple[float, int, list[Lane]]],
) -> Iterable[tuple[float, int, list[Lane]]]:
    heapq.heapify(queue)
    while queue:
        yield heapq.heappop(queue)

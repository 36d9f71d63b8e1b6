"""The pool played forward: who starts when, by hand-made cases."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from models.forecast import Lane, Party, Placed, Play, Sharer, Slot, Waiter
from models.paces import Basis, Estimate

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ANY, LARGE = 1, 2  # needs


def waiters(*names: str, seconds: float = 100, turn: float = 0, base: str = "m") -> list[Waiter]:
    """In this order, a minute apart: further than the head start of a warm base."""
    work = Estimate(seconds, Basis.LIKE, ("m",), 3)
    return [
        Waiter(name, EPOCH + timedelta(seconds=turn + 60 * number), base, work)
        for number, name in enumerate(names)
    ]


def lane(
    sharer: Sharer,
    found: list[Waiter],
    *,
    user: Party | None = None,
    need: int = ANY,
    urgent: bool = False,
) -> Lane:
    return Lane(random.getrandbits(40), sharer, user or Party(), need, urgent, found)


def slots(count: int, **fields: Any) -> list[Slot]:
    return [Slot(number, frozenset({ANY}), **fields) for number in range(count)]


def play(gpus: list[Slot], *lanes: Lane, most: int = 1000, **fields: Any) -> list[Placed]:
    usual: dict[str, Any] = {
        "half_life": 86_400.0,
        "head_start": timedelta(seconds=30),
        "turnover": 1.0,
    }
    return list(Play(slots=gpus, lanes=list(lanes), **usual | fields).run(most))


def starts(found: list[Placed]) -> dict[str, float | None]:
    return {one.waiter.id: one.start for one in found}


def order(found: list[Placed]) -> str:
    return "".join(one.waiter.id for one in found)


def test_jobs_start_as_slots_come_free() -> None:
    first, second = slots(2)
    owner = Sharer(id=1, charge=60)
    first.busy, first.start, first.sharer, first.user = 30, -70, owner, Party()
    first.work = Estimate(30, Basis.OWN)
    second.busy = 50
    found = play([first, second], lane(owner, waiters("a", "b", "c")))
    assert starts(found) == {"a": 31, "b": 51, "c": 132}
    assert [one.position for one in found] == [1, 2, 3]
    assert found[0].ended == {Basis.OWN: 1}
    assert found[2].ended == {Basis.OWN: 1, Basis.LIKE: 1}
    assert found[2].finished[Basis.LIKE] == 3


def test_tenants_share_by_weight_and_by_what_they_used() -> None:
    light, heavy = Sharer(id=1, charge=100), Sharer(id=2, weight=2, charge=100)
    names = [f"{number:03}" for number in range(60)]
    found = play(
        slots(3),
        lane(light, waiters(*(f"l{name}" for name in names))),
        lane(heavy, waiters(*(f"h{name}" for name in names))),
        most=90,
    )
    assert Counter(one.waiter.id[0] for one in found[:60]) == {"l": 20, "h": 40}
    behind, ahead = Sharer(id=1, charge=100), Sharer(id=2, used=250, charge=100)
    found = play(slots(1), lane(behind, waiters(*"abc")), lane(ahead, waiters(*"xyz")))
    assert order(found) == "abcxyz"


def test_gpus_that_are_free_at_once_are_shared_by_the_charge() -> None:
    one, other = Sharer(id=1, charge=60), Sharer(id=2, charge=60)
    found = play(slots(4), lane(one, waiters(*"abcd")), lane(other, waiters(*"wxyz")))
    assert order(found)[:4] == "awbx"


def test_the_charge_follows_how_long_jobs_take() -> None:
    """Charged 60 s for jobs of 1 s it would stand back for one that is charged what it uses."""
    short = Sharer(id=1, charge=60, charge_is_measured=False)
    play(slots(1), lane(short, waiters("a", "b", seconds=1)))
    assert short.charge == 1


def test_use_decays_while_the_play_goes_on() -> None:
    """After two half-lives 450 s of use count 111, and the 200 s of the other count 150."""
    old = Sharer(id=1, used=450, charge=1)
    new = Sharer(id=2, charge=1)
    found = play(
        slots(1),
        lane(old, waiters("o")),
        lane(new, waiters(*"abcdef", seconds=100)),
        half_life=100.0,
    )
    assert order(found).index("o") == 2
    undecayed = play(
        slots(1),
        lane(Sharer(id=1, used=450, charge=1), waiters("o")),
        lane(Sharer(id=2, charge=1), waiters(*"abcdef", seconds=100)),
        half_life=1e9,
    )
    assert order(undecayed).index("o") == 5


def test_urgent_jobs_go_first() -> None:
    one, other = Sharer(id=1, charge=60), Sharer(id=2, charge=60, used=1000)
    found = play(slots(1), lane(one, waiters(*"ab")), lane(other, waiters("u"), urgent=True))
    assert order(found) == "uab"


def test_a_limit_of_running_jobs_holds_until_one_ends() -> None:
    tenant = Sharer(id=1, charge=60, max_running=1)
    found = play(slots(2), lane(tenant, waiters(*"ab")), lane(Sharer(id=2), waiters(*"xy")))
    assert starts(found) == {"a": 1, "x": 1, "b": 102, "y": 102}
    user = Party(max_running=1)
    found = play(slots(2), lane(Sharer(id=1), waiters(*"ab"), user=user))
    assert starts(found) == {"a": 1, "b": 102}


def test_a_limit_of_gpu_hours_ends_it_and_a_full_disk_stops_it() -> None:
    tenant = Sharer(id=1, charge=60, seconds_allowed=150, seconds_spent=0)
    assert order(play(slots(1), lane(tenant, waiters(*"abc")))) == "ab"
    assert play(slots(1), lane(Sharer(id=1, shut=True), waiters("a"))) == []


def test_a_job_goes_only_where_its_need_is_met_and_leaves_the_large_gpu_to_others() -> None:
    small = Slot(1, frozenset({ANY}), memory_bytes=10)
    large = Slot(0, frozenset({ANY, LARGE}), memory_bytes=80)
    tenant = Sharer(id=1, charge=60)
    found = play(
        [small, large],
        lane(tenant, waiters("a", "b", seconds=500)),
        lane(tenant, waiters("L", "M", turn=600), need=LARGE),
    )
    # The first takes the small one, the second what is left; the large ones have to wait for it.
    assert starts(found) == {"a": 1, "b": 1, "L": 502, "M": 603}
    assert play([small], lane(tenant, waiters("L"), need=LARGE)) == []


def test_a_job_just_behind_goes_first_where_its_base_is_loaded() -> None:
    def two(apart: float) -> list[Waiter]:
        return [*waiters("c", base="cold"), *waiters("w", base="warm", turn=apart)]

    owner = Sharer(id=1, charge=60)
    assert order(play(slots(1, base_model="warm"), lane(owner, two(20)))) == "wc"
    assert order(play(slots(1, base_model="warm"), lane(owner, two(40)))) == "cw"


def test_a_lane_gives_its_further_jobs_when_they_are_wanted() -> None:
    pages = [waiters("d", "e"), []]
    asked = lane(Sharer(id=1, charge=60), waiters("a"))
    asked.more = lambda: pages.pop(0)
    assert order(play(slots(1), asked)) == "ade"


def test_without_a_gpu_the_order_alone_is_known() -> None:
    one, other = Sharer(id=1, charge=60, max_running=1), Sharer(id=2, charge=60)
    found = play([], lane(one, waiters(*"ab")), lane(other, waiters(*"xy")), order_only=True)
    assert order(found) == "axby"
    assert {one.start for one in found} == {None}


def test_it_ends_when_it_has_gone_on_long_enough() -> None:
    names = [f"{number:04}" for number in range(500)]
    made = Play(
        slots=slots(1),
        lanes=[lane(Sharer(id=1, charge=60), waiters(*names))],
        half_life=86_400.0,
        head_start=timedelta(0),
        turnover=0.0,
    )
    assert len(list(made.run(300))) == 300
    assert made.cut

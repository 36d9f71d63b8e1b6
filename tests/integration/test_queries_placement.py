"""Which job goes next, and where."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue

import pytest
from sqlalchemy import select, text, update

from models.queries import attempts, gpus, jobs, outbox, placement
from models.queries.placement import Placement
from models.queries.shares import share_parameters
from models.session import transaction
from models.states import JobState, Outcome, Stage, StopReason
from models.tables import Attempt, GpuNeed, Tenant, Ticket
from tests import records
from tests.records import add_gpu, claim, claimed, end, job, place, queued, state, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def set_tenant(name: str, **columns: float) -> None:
    with transaction() as session:
        session.execute(update(Tenant).where(Tenant.name == name).values(**columns))


def tenants_of_placed() -> list[str]:
    return [job(one.job_id).tenant.name for one in place()]


# Preparation


def test_preparation_is_placed_up_to_the_limit() -> None:
    made = [submit() for _ in range(5)]
    assert records.place_preparation(limit=3) == 3
    assert records.place_preparation(limit=3) == 0
    first = claimed(made[0], Stage.PREPROCESS)
    assert records.place_preparation(limit=3) == 0  # one that runs counts too
    end(first.job_id, first.fence, Outcome.COMPLETED)
    assert records.place_preparation(limit=3) == 1
    assert [job(one).fence for one in made] == [1, 1, 1, 1, 0]


def test_a_flood_of_one_tenant_does_not_hold_up_the_preparation_of_another() -> None:
    for _ in range(6):
        submit("flood")
    late = submit("late")
    assert records.place_preparation(limit=2) == 2
    assert job(late).fence == 1


def test_the_ticket_is_written_with_the_placement() -> None:
    job_id = submit()
    records.place_preparation()
    with transaction() as session:
        (ticket,) = outbox.unsent(session)
    assert (ticket.job_id, ticket.fence) == (job_id, 1)
    assert (ticket.stage, ticket.queue) == ("preprocess", "celora.cpu")


# GPUs


def test_one_job_for_each_free_gpu() -> None:
    add_gpu(0)
    add_gpu(1)
    made = [queued() for _ in range(3)]
    placed = place()
    assert [one.job_id for one in placed] == made[:2]
    assert {one.queue for one in placed} == {"celora.gpu.host.0", "celora.gpu.host.1"}
    assert [one.stage for one in placed] == [Stage.TRAIN, Stage.TRAIN]
    assert place() == []
    assert state(made[0]) == JobState.QUEUED  # until a worker has claimed it


def test_the_ticket_says_whether_an_evaluation_follows() -> None:
    add_gpu(0)
    add_gpu(1)
    with_tail, without = queued(), queued(evaluate=False)
    place()
    with transaction() as session:
        said = {ticket.job_id: ticket.evaluate for ticket in outbox.unsent(session)}
    assert said == {with_tail: True, without: False}


@pytest.mark.parametrize("reported", ["busy", "unknown", "held"])
def test_a_gpu_that_does_not_say_idle_gets_no_job(reported: str) -> None:
    gpu_id = add_gpu(reported=reported)
    queued()
    assert place() == []
    with transaction() as session:
        gpus.heartbeat(session, gpu_id, "session-1", reported="idle")
    assert len(place()) == 1


def test_a_registered_gpu_gets_no_job_before_its_first_heartbeat() -> None:
    add_gpu(worker_session="old")
    with transaction() as session:
        add_gpu_without_heartbeat = gpus.register_gpu(
            session,
            host="host",
            index=0,
            uuid="cpu-host-0",
            kind="cpu",
            model="cpu",
            memory_bytes=1,
            queue="q",
            worker="w",
            worker_session="new",
            boot_id="b",
            versions={},
        )
    queued()
    assert place() == []
    with transaction() as session:
        assert not gpus.heartbeat(session, add_gpu_without_heartbeat, "old", reported="idle")
    assert place() == []


def test_a_gpu_whose_heartbeat_is_old_gets_no_job() -> None:
    add_gpu()
    queued()
    with transaction() as session:
        session.execute(text("UPDATE gpus SET heartbeat_at = heartbeat_at - interval '31 s'"))
    assert place() == []


def test_a_cordoned_or_stopped_gpu_gets_no_job() -> None:
    gpu_id = add_gpu()
    queued()
    with transaction() as session:
        gpus.set_cordon(session, "host", 0, on=True)
    assert place() == []
    with transaction() as session:
        gpus.set_cordon(session, "host", 0, on=False)
        gpus.mark_gone(session, gpu_id, "session-1")
    assert place() == []
    with transaction() as session:
        gpus.heartbeat(session, gpu_id, "session-1", reported="idle")
    assert len(place()) == 1


def test_a_job_goes_where_its_base_model_is_loaded() -> None:
    add_gpu(0, loaded_base="b")
    add_gpu(1)
    add_gpu(2, loaded_base="a")
    for base in ("a", "c", "b"):
        queued(base_model=base)
    where = {job(one.job_id).base_model: one.queue[-1] for one in place()}
    assert where == {"a": "2", "c": "1", "b": "0"}


def test_a_loaded_base_model_does_not_let_a_job_jump_the_queue() -> None:
    add_gpu(0, loaded_base="b")
    first = queued(base_model="a")
    with transaction() as session:
        session.execute(text("UPDATE jobs SET turn_at = turn_at - interval '31 seconds'"))
    queued(base_model="b")  # more than its head start later
    assert [one.job_id for one in place()] == [first]


# The order of jobs


def test_within_a_tenant_priority_then_first_come() -> None:
    late_and_urgent_last = [queued(), queued(), queued(priority=5)]
    add_gpu(0)
    add_gpu(1)
    assert [one.job_id for one in place()] == [late_and_urgent_last[2], late_and_urgent_last[0]]


def test_the_tenant_that_used_least_for_its_weight_goes_first() -> None:
    for tenant in ("a", "b", "c"):
        queued(tenant)
    set_tenant("a", usage_gpu_seconds=1000)
    set_tenant("b", usage_gpu_seconds=3000, weight=4)
    set_tenant("c", usage_gpu_seconds=900)
    for index in range(3):
        add_gpu(index)
    assert tenants_of_placed() == ["b", "c", "a"]


def test_use_counts_half_after_a_half_life() -> None:
    for tenant in ("a", "b"):
        queued(tenant)
    set_tenant("a", usage_gpu_seconds=1500)
    set_tenant("b", usage_gpu_seconds=1000)
    with transaction() as session:
        session.execute(
            text("UPDATE tenants SET usage_at = usage_at - interval '1 day' WHERE name = 'a'")
        )
    add_gpu()
    assert tenants_of_placed() == ["a"]


def test_gpus_that_are_free_at_once_are_shared_by_weight() -> None:
    for tenant in ("a", "b", "c"):
        for _ in range(8):
            queued(tenant)
    set_tenant("c", weight=2)
    for index in range(8):
        add_gpu(index)
    assert Counter(tenants_of_placed()) == {"a": 2, "b": 2, "c": 4}


def test_jobs_that_run_count_before_they_are_charged() -> None:
    first = queued("a")
    queued("a")
    add_gpu(0)
    place()
    claimed(first, Stage.TRAIN)
    with transaction() as session:
        session.execute(text("UPDATE attempts SET claimed_at = claimed_at - interval '1 hour'"))
    queued("b")
    set_tenant("b", usage_gpu_seconds=1800)
    add_gpu(1)
    assert tenants_of_placed() == ["b"]


def test_a_job_that_someone_has_locked_is_passed_over() -> None:
    first, second = queued(), queued()
    add_gpu()
    with transaction() as cancelling:
        jobs.request_stop(cancelling, first, StopReason.CANCEL)
        assert [one.job_id for one in place()] == [second]
    assert state(first) == JobState.CANCELLED


# Several at once


class _Race:
    """Two dispatchers, and two claimers for each GPU, who both get each of its tickets."""

    def __init__(self, gpu_ids: list[int], jobs_in_all: int) -> None:
        self.gpu_ids, self.jobs_in_all = gpu_ids, jobs_in_all
        self.done: list[str] = []
        self.most_at_work: Counter[int] = Counter()
        self._working: Counter[int] = Counter()
        self._guard = threading.Lock()
        self._freed, self._over = threading.Event(), threading.Event()
        self._tickets: dict[int, SimpleQueue[Placement | None]] = {
            gpu_id: SimpleQueue() for gpu_id in gpu_ids
        }

    def run(self) -> None:
        with ThreadPoolExecutor(2 + 2 * len(self.gpu_ids)) as pool:
            threads = [pool.submit(self._work, gpu_id) for gpu_id in self.gpu_ids * 2]
            threads += [pool.submit(self._dispatch) for _ in range(2)]
            try:
                wait(threads[-2:], timeout=100, return_when=FIRST_EXCEPTION)
            finally:
                self._over.set()
                for gpu_id in self.gpu_ids:
                    self._to_both(gpu_id, None)
            for thread in threads:
                thread.result()

    def _to_both(self, gpu_id: int, ticket: Placement | None) -> None:
        for _ in range(2):
            self._tickets[gpu_id].put(ticket)

    def _dispatch(self) -> None:
        while not self._over.is_set():
            for one in place():
                assert one.gpu_id is not None
                self._to_both(one.gpu_id, one)
            self._freed.wait(0.05)  # the other may have taken the wake-up
            self._freed.clear()

    def _work(self, gpu_id: int) -> None:
        while (ticket := self._tickets[gpu_id].get()) is not None:
            taken = claim(ticket.job_id, Stage.TRAIN, fence=ticket.fence)
            if taken is None:
                continue
            with self._guard:
                self._working[gpu_id] += 1
                most = max(self.most_at_work[gpu_id], self._working[gpu_id])
                self.most_at_work[gpu_id] = most
            with transaction() as session:
                assert attempts.renew(session, taken.attempt_id, records.LEASE_SECONDS)
            with self._guard:  # before the end is on record: the next job must not be here yet
                self._working[gpu_id] -= 1
            end(taken.job_id, taken.fence, Outcome.COMPLETED)
            self._freed.set()
            with self._guard:
                self.done.append(taken.job_id)
                if len(self.done) == self.jobs_in_all:
                    self._over.set()


def test_two_dispatchers_and_sixteen_claimers_race_for_200_jobs() -> None:
    """Each job runs once, and no GPU has two jobs at a time."""
    gpu_ids = [add_gpu(index) for index in range(8)]
    made = [submit(f"tenant-{number % 4}", evaluate=False) for number in range(200)]
    with transaction() as session:
        session.execute(text("UPDATE jobs SET state = 'queued', stage = 'train'"))
    race = _Race(gpu_ids, len(made))
    race.run()
    assert sorted(race.done) == sorted(made)
    assert set(race.most_at_work.values()) == {1}
    with transaction() as session:
        assert session.scalar(_OVERLAPS) == 0
        assert sorted(session.scalars(select(Ticket.job_id))) == sorted(made)


_OVERLAPS = text("""
    SELECT count(*) FROM attempts AS a JOIN attempts AS b
        ON a.gpu_id = b.gpu_id AND a.id < b.id
    WHERE tstzrange(a.placed_at, a.ended_at) && tstzrange(b.placed_at, b.ended_at)
""")


def live_attempts_per_gpu() -> Counter[int]:
    with transaction() as session:
        found = session.scalars(
            select(Attempt.gpu_id).where(Attempt.ended_at.is_(None), Attempt.gpu_id.is_not(None))
        )
        return Counter(Counter(found).values())


def test_finding_the_best_job_costs_the_same_however_many_wait() -> None:
    """Counted in pages, not in time: the probe reads the front of each tenant's queue."""
    for number in range(10):
        queued(f"tenant-{number}")
    few = pages_read()
    with transaction() as session:
        session.execute(_FLOOD, {"jobs": 20_000})
    many = pages_read()
    assert few > 0
    assert many < 2 * few + 20  # a deeper index


def pages_read() -> int:
    explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {placement._BEST_JOBS.text}")
    with transaction() as session:
        needs = list(session.scalars(select(GpuNeed.id)))
        parameters = {"urgent": False, "need_ids": needs, "passed_over": [], "look_ahead": 8}
        (found,) = session.execute(explain, parameters | share_parameters()).scalar_one()
    plan = found["Plan"]
    assert "ix_jobs_queued_turn" in str(plan)
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


_FLOOD = text("""
    INSERT INTO jobs (id, tenant_id, user_name, lane_id, spec, base_model, method, priority, state,
                      stage)
    SELECT 'ftjob-' || number, lane.tenant_id, 'ada', lane.id, '{}', 'm', 'lora', 0, 'queued',
           'train'
    FROM generate_series(1, :jobs) AS number
    JOIN (SELECT *, row_number() OVER (ORDER BY id) AS turn FROM lanes) AS lane
        ON lane.turn = number % 10 + 1
""")

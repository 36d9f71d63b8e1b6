"""The forecasts on record, the view admin.queue, and that the played order is the placement's."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, text

from models.queries import forecasts, jobs, pool, preemption, tenants, waiting
from models.queries.fence import Exclusive, try_exclusive
from models.session import engine, transaction
from models.states import Stage, StopReason
from models.tables import Forecast, Ticket
from tasks import dispatcher
from tasks.dispatcher import forecast
from tests import records
from tests.records import add_gpu, claimed, place, queued, running, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def execute(statement: str, **parameters: Any) -> None:
    with transaction() as session:
        session.execute(text(statement), parameters)


def admin_queue() -> dict[str, Any]:
    with transaction() as session:
        rows = session.execute(text("SELECT * FROM admin.queue")).all()
        return {row.job: row for row in rows}


def refresh() -> int:
    """As the dispatcher does, whatever the age of what stands."""
    execute("DELETE FROM forecasts")
    return forecast.pass_once()


def test_the_forecast_says_what_why_says() -> None:
    taken = running()
    first, second = queued(urgent=True), queued()
    lacking = queued(gpu_memory_gb=80)
    after = queued(after=taken.job_id)
    pending = submit()
    assert refresh() == 5
    found = admin_queue()
    assert set(found) == {first, second, lacking, after, pending}
    for job_id, row in found.items():
        with transaction() as session:
            said = waiting.why_waiting(session, job_id)
        assert (row.reason, row.position) == (said.reason, said.position)
        assert said.sentence.startswith(row.sentence)
        assert row.basis == said.basis
        if said.expected_start_at is not None:
            apart = abs((row.expected_start_at - said.expected_start_at).total_seconds())
            assert apart < 5
    assert [found[job_id].position for job_id in (first, second, lacking)] == [1, 2, None]
    assert (found[first].urgent, found[second].urgent) == (True, False)
    assert (found[lacking].needs, found[first].needs) == ("80 GB", "any GPU")
    assert (found[first].tenant, found[first].user_name) == ("default", "ada")
    assert 0 <= found[first].waiting_seconds < 60


def test_an_urgent_job_for_which_another_makes_room() -> None:
    running(preemptible=True)
    urgent = queued(urgent=True)
    with transaction() as session:
        assert len(preemption.preempt(session)) == 1
    refresh()
    assert admin_queue()[urgent].reason == "preempting"


def test_the_view_knows_a_placed_job_before_the_next_forecast() -> None:
    job_id = queued()
    refresh()
    assert admin_queue()[job_id].reason == "no_worker"
    add_gpu()
    place()
    row = admin_queue()[job_id]
    assert (row.reason, row.position, row.sentence) == ("placed", None, None)
    claimed(job_id, Stage.TRAIN)
    assert admin_queue() == {}


def test_every_column_of_the_view_has_a_comment() -> None:
    with transaction() as session:
        without = session.scalars(
            text(
                "SELECT attname FROM pg_attribute"
                " WHERE attrelid = 'admin.queue'::regclass AND attnum > 0"
                " AND col_description(attrelid, attnum) IS NULL"
            )
        ).all()
    assert without == []


def test_forecasts_of_jobs_that_no_longer_wait_are_removed() -> None:
    gone, stays = queued(), queued()
    assert refresh() == 2
    with transaction() as session:
        jobs.request_stop(session, gone, StopReason.CANCEL)
        made = forecasts.make(session, younger_than=0)
    assert made is not None
    with transaction() as session:
        assert forecasts.write(session, made) == 1
        assert set(forecasts.forecasts_of(session, [gone, stays])) == {stays}


def test_one_dispatcher_forecasts_and_the_others_leave_it_be() -> None:
    queued()
    with transaction() as other:
        assert try_exclusive(other, Exclusive.FORECAST)
        assert forecast.pass_once() == 0
    assert forecast.pass_once() == 1
    assert forecast.pass_once() == 0  # it has just been done
    with transaction() as session:
        assert session.query(Forecast).count() == 1


def test_a_forecast_does_not_wait_for_placement_nor_placement_for_it() -> None:
    queued()
    add_gpu()
    with transaction() as placing:
        assert try_exclusive(placing, Exclusive.PLACE)
        assert forecast.pass_once() == 1
    with transaction() as forecasting:
        assert try_exclusive(forecasting, Exclusive.FORECAST)
        assert len(place()) == 1


def test_the_dispatcher_keeps_the_forecasts() -> None:
    job_id = queued()
    stop = threading.Event()
    sent: list[Ticket] = []  # there is no GPU, and so no ticket
    with ThreadPoolExecutor(1) as pool:
        dispatching = pool.submit(dispatcher.run, stop, publish=sent.append)
        try:
            deadline = time.monotonic() + 30
            while job_id not in _forecast_jobs():
                assert time.monotonic() < deadline
                assert not dispatching.done()
                time.sleep(0.05)
        finally:
            stop.set()
        dispatching.result(20)


def _forecast_jobs() -> set[str]:
    with transaction() as session:
        return {row.job_id for row in session.query(Forecast)}


@pytest.mark.parametrize("seed", range(6))
def test_the_played_order_is_that_of_the_placement(seed: int) -> None:
    """Tenants, users, weights, use, priorities, bases, needs, urgency and limits at random."""
    chance = random.Random(seed)
    for index in range(8):
        add_gpu(index, loaded_base=chance.choice([None, "a", "b"]))
        execute(
            "UPDATE gpus SET memory_bytes = :memory, labels = cast(:labels AS jsonb)"
            " WHERE index = :index",
            index=index,
            memory=chance.choice([10**9, 4 * 10**9]),
            labels=chance.choice(["{}", '{"zone": "a"}']),
        )
    for _ in range(30):
        _random_job(chance)
    with transaction() as session:
        for number in range(3):
            changes = {
                "weight": chance.choice([0.5, 1, 2]),
                "max_running_jobs": chance.choice([None, None, 2]),
                "user_max_running_jobs": chance.choice([None, 1]),
            }
            tenants.change_tenant(session, f"tenant-{number}", changes)
    execute("UPDATE tenants SET usage_gpu_seconds = 37 * (id % 7), usage_at = now()")
    with transaction() as session:
        state = pool.read_pool(session)
        played = [one for one in state.play.run(100) if one.start == state.play.turnover]
    placed = place()
    assert len(placed) > 3
    assert [(one.waiter.id, one.slot_id) for one in played] == [
        (one.job_id, one.gpu_id) for one in placed
    ]


def _random_job(chance: random.Random) -> None:
    fields: dict[str, Any] = {
        "base_model": chance.choice(["a", "b", "c"]),
        "priority": chance.randrange(3),
        "urgent": chance.random() < 0.2,
    }
    if chance.random() < 0.3:
        fields["gpu_memory_gb"] = 2
    if chance.random() < 0.3:
        fields["gpu_labels"] = {"zone": "a"}
    with transaction() as session:
        job_id = jobs.insert_job(
            session,
            records.spec(**fields),
            tenant=f"tenant-{chance.randrange(3)}",
            user=chance.choice(["ada", "bob"]),
        ).id
        session.execute(
            text("UPDATE jobs SET state = 'queued', stage = 'train' WHERE id = :id"), {"id": job_id}
        )


# Far back


def flood(count: int) -> None:
    """So many more queued jobs, spread over the lanes there are, one millisecond apart."""
    execute(
        """
        INSERT INTO jobs (id, tenant_id, user_name, spec, base_model, method, priority, state,
                          stage, lane_id, turn_at)
        SELECT 'ftjob-' || lpad(number::text, 8, '0'), lane.tenant_id, 'ada', '{}', 'm', 'lora', 0,
               'queued', 'train', lane.id, now() + number * interval '1 ms'
        FROM generate_series(1, :count) AS number
        JOIN (SELECT *, row_number() OVER (ORDER BY id) - 1 AS turn FROM lanes) AS lane
            ON lane.turn = number % (SELECT count(*) FROM lanes)
        """,
        count=count,
    )


def test_a_job_far_back_gets_its_place_by_count_and_its_start_by_rate() -> None:
    add_gpu()
    for number in range(4):
        queued(f"tenant-{number}")
    flood(8000)
    with transaction() as session:
        said = waiting.why_waiting(session, "ftjob-00006000")
        near = waiting.why_waiting(session, "ftjob-00000400")
    assert said.position is not None
    assert abs(said.position - 6004) <= 8
    assert "About 6,0" in said.sentence
    assert said.reason == "gpus_busy"
    assert said.expected_start_at is not None
    assert near.expected_start_at is not None
    assert near.position is not None
    now = time.time()
    rates = [
        (one.expected_start_at.timestamp() - now) / one.position  # type: ignore[union-attr, operator]  # asserted above
        for one in (near, said)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.02)
    assert "those behind at the same rate" in (said.basis or "")


def test_counting_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.queries.depth._COUNTED", 3000)
    add_gpu()
    queued()
    flood(6000)
    with transaction() as session:
        said = waiting.why_waiting(session, "ftjob-00005000")
    assert said.position == 3001
    assert "At least 3,000 jobs go before it." in said.sentence


def test_an_answer_reads_few_rows_however_many_wait() -> None:
    """Counted in rows that are fetched, not in time: the same for ten times the jobs."""
    fetched = []
    for count in (3000, 30_000):
        records.clear()
        add_gpu()
        for number in range(4):
            queued(f"tenant-{number}")
        flood(count)
        fetched += [(_rows_fetched("ftjob-00000010"), _rows_fetched("ftjob-00002500"))]
    assert 0 < fetched[1][0] <= fetched[0][0] + 50
    assert 0 < fetched[1][1] <= fetched[0][1] + 50


def _rows_fetched(job_id: str) -> int:
    total = 0

    def count(_: Any, cursor: Any, *__: Any) -> None:
        nonlocal total
        total += max(0, cursor.rowcount)

    event.listen(engine(), "after_cursor_execute", count)
    try:
        with transaction() as session:
            waiting.why_waiting(session, job_id)
    finally:
        event.remove(engine(), "after_cursor_execute", count)
    return total


def test_neither_the_queue_nor_the_view_reads_the_whole_table() -> None:
    queued()
    flood(20_000)
    assert "Seq Scan on jobs" not in plan_of(pool._FRONTS.text)
    execute("UPDATE jobs SET state = 'completed' WHERE id LIKE 'ftjob-0%'")
    assert "Seq Scan on jobs" not in plan_of("SELECT * FROM admin.queue")


def plan_of(statement: str) -> str:
    execute("ANALYZE jobs")
    with transaction() as session:
        lines = session.scalars(text(f"EXPLAIN {statement}"), {"rows": 400, "front": 8})
        return "\n".join(lines)

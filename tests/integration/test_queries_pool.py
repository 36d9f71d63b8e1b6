"""One pool: limits, what jobs ask of a GPU, urgency and preemption, ageing, jobs after jobs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from models.errors import InputError, SpecError
from models.queries import dependencies, gpus, jobs, lanes, preemption, tenants
from models.session import transaction
from models.states import JobState, Outcome, Stage, StopReason
from tests import records
from tests.environment import variables
from tests.records import add_gpu, claim, claimed, end, job, place, queued, state, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def limit(tenant: str = "default", user: str | None = None, **changes: Any) -> None:
    with transaction() as session:
        if user is None:
            tenants.change_tenant(session, tenant, changes)
        else:
            tenants.change_user(session, tenant, user, changes)


def queued_by(user: str, **fields: Any) -> str:
    with transaction() as session:
        job_id = jobs.insert_job(session, records.spec(**fields), tenant="default", user=user).id
    records.prepare(job_id)
    return job_id


def placed_jobs() -> list[str]:
    return [one.job_id for one in place()]


def describe(index: int, **columns: Any) -> None:
    """Change what a GPU says of itself."""
    names = ", ".join(f"{name} = :{name}" for name in columns)
    with transaction() as session:
        session.execute(
            text(f"UPDATE gpus SET {names} WHERE index = :index"),  # noqa: S608 (a test's own words)
            {"index": index, **columns},
        )


# Limits


def test_over_the_tenants_limit_of_running_jobs_its_jobs_wait_and_others_go() -> None:
    for index in range(4):
        add_gpu(index)
    made = [queued("a") for _ in range(3)]
    limit("a", max_running_jobs=2)
    other = queued("b")
    assert sorted(placed_jobs()) == sorted([*made[:2], other])
    first = claimed(made[0], Stage.TRAIN)
    end(first.job_id, first.fence, Outcome.FAILED)
    assert placed_jobs() == [made[2]]


def test_a_limit_is_not_raced_within_one_pass_nor_by_placements_not_yet_claimed() -> None:
    add_gpu(0)
    for _ in range(2):
        queued("a")
    limit("a", max_running_jobs=1)
    assert len(place()) == 1
    add_gpu(1)
    assert place() == []


def test_a_users_limit_holds_up_that_user_alone() -> None:
    for index in range(3):
        add_gpu(index)
    adas = [queued_by("ada") for _ in range(3)]
    bobs = queued_by("bob")
    limit(user_max_running_jobs=1)
    assert placed_jobs() == [adas[0], bobs]
    limit(user="ada", max_running_jobs=2)
    assert placed_jobs() == [adas[1]]


@pytest.mark.parametrize("whose", ["", "user_"])
def test_the_quota_of_gpu_hours_counts_this_month_and_what_runs(whose: str) -> None:
    add_gpu(0)
    add_gpu(1)
    first, second = queued(), queued()
    limit("default", None, **{f"{whose}gpu_hours_per_month": 1.0})
    place()
    claimed(first, Stage.TRAIN)
    taken = claimed(second, Stage.TRAIN)
    third = queued()
    with transaction() as session:
        session.execute(text("UPDATE attempts SET claimed_at = claimed_at - interval '31 minutes'"))
    end(taken.job_id, taken.fence, Outcome.FAILED)  # charged to the day; the first still runs
    assert place() == []
    limit("default", None, **{f"{whose}gpu_hours_per_month": 1.1})
    assert placed_jobs() == [third]


def test_use_of_an_earlier_month_does_not_count() -> None:
    add_gpu()
    job_id = queued()
    limit(gpu_hours_per_month=1.0)
    with transaction() as session:
        session.execute(
            text(
                "INSERT INTO usage_days SELECT id, date_trunc('month', now() at time zone 'utc')"
                "::date - 1, 9000 FROM users"
            )
        )
    assert placed_jobs() == [job_id]


def test_over_the_disk_quota_nothing_new_starts() -> None:
    add_gpu()
    job_id = queued()
    limit(disk_bytes=1000)
    with transaction() as session:
        session.execute(text("UPDATE users SET disk_used_bytes = 1000"))
    assert place() == []
    with transaction() as session:
        session.execute(text("UPDATE users SET disk_used_bytes = 999"))
    assert placed_jobs() == [job_id]


def test_jobs_beyond_the_queue_limit_stay_pending_until_others_have_begun() -> None:
    limit("a", max_queued_jobs=2)
    made = [submit("a") for _ in range(4)]
    other = submit("b")
    assert records.place_preparation() == 3
    assert [job(one).fence for one in [*made, other]] == [1, 1, 0, 0, 1]
    for one in made[:2]:
        first = claimed(one, Stage.PREPROCESS, worker_session="cpu")
        end(first.job_id, first.fence, Outcome.COMPLETED)
    assert records.place_preparation() == 0  # two are queued
    add_gpu()
    place()
    claimed(made[0], Stage.TRAIN)
    assert records.place_preparation() == 1
    assert job(made[2]).fence == 1


def test_a_users_queue_limit() -> None:
    limit(user_max_queued_jobs=1)
    made = []
    for user in ("ada", "ada", "bob"):
        with transaction() as session:
            made.append(jobs.insert_job(session, records.spec(), tenant="default", user=user).id)
    assert records.place_preparation() == 2
    assert [job(one).fence for one in made] == [1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"weight": 0}, "weight"), ({"max_running_jobs": -1}, "max_running_jobs"), ({"x": 1}, "x")],
)
def test_impossible_limits_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        limit("a", **changes)
    assert caught.value.where == where


def test_tenants_are_shown_with_what_they_use() -> None:
    add_gpu()
    queued_by("ada")
    submit()
    limit(max_running_jobs=1, user_disk_bytes=5)
    place()
    with transaction() as session:
        (view,) = tenants.list_tenants(session, "default")
    assert (view.running, view.queued, view.pending) == (1, 1, 1)
    assert (view.max_running_jobs, view.over_limit) == (1, "max_running_jobs")
    assert [(user.name, user.disk_bytes, user.running) for user in view.users] == [("ada", 5, 1)]


# What a job asks of a GPU


def test_a_job_waits_for_a_gpu_with_the_memory_it_asks_for() -> None:
    add_gpu(0)
    large = queued(gpu_memory_gb=40)
    small = queued(gpu_memory_gb=1)
    assert placed_jobs() == [small]
    add_gpu(1)
    describe(1, memory_bytes=40_000_000_000)
    assert placed_jobs() == [large]


def test_a_model_is_found_by_a_part_of_its_name() -> None:
    add_gpu(0)
    job_id = queued(gpu_model="h100")
    assert place() == []
    describe(0, model="NVIDIA H100 80GB HBM3")
    assert placed_jobs() == [job_id]


def test_all_labels_are_needed() -> None:
    add_gpu(0)
    job_id = queued(gpu_labels={"zone": "a", "fast": "yes"})
    with transaction() as session:
        gpus.set_labels(session, "host", 0, {"zone": "a"})
    assert place() == []
    with transaction() as session:
        gpus.set_labels(session, "host", None, {"fast": "yes"})
    assert placed_jobs() == [job_id]
    with transaction() as session:
        gpus.set_labels(session, "host", 0, {"fast": None})
        assert gpus.list_gpus(session)[0].labels == {"zone": "a"}


def test_the_plainest_gpu_that_will_do_is_taken() -> None:
    for index in range(3):
        add_gpu(index)
    describe(0, memory_bytes=80_000_000_000)
    describe(1, labels='{"zone": "a"}')
    queued()
    assert [one.queue[-1] for one in place()] == ["2"]


def test_equal_wishes_share_a_lane_however_they_are_written() -> None:
    first = queued(gpu_model="H100 ", gpu_labels={"a": "1", "b": "2"})
    second = queued(gpu_model="h100", gpu_labels={"b": "2", "a": "1"})
    third = queued(gpu_model="h200")
    assert job(first).lane_id == job(second).lane_id != job(third).lane_id


# Turns


def test_waiting_outweighs_priority_in_time() -> None:
    with variables(CELORA_PRIORITY_AGEING_SECONDS="60"):
        waited_long, important = queued(), queued(priority=5)
        with transaction() as session:
            session.execute(
                text(
                    "UPDATE jobs SET turn_at = turn_at - interval '301 seconds' WHERE id = :job_id"
                ),
                {"job_id": waited_long},
            )
    add_gpu(0)
    assert placed_jobs() == [waited_long]
    add_gpu(1)
    assert placed_jobs() == [important]


def test_a_drained_job_keeps_its_turn_and_a_resumed_one_takes_a_new() -> None:
    first = records.running()
    before = job(first.job_id).turn_at
    end(first.job_id, first.fence, Outcome.DRAINED)
    assert job(first.job_id).turn_at == before
    with transaction() as session:
        jobs.request_stop(session, first.job_id, StopReason.PAUSE)
    with transaction() as session:
        jobs.resume_job(session, first.job_id)
    assert job(first.job_id).turn_at > before


def test_jobs_without_a_lane_are_adopted_and_unreadable_ones_fail_alone() -> None:
    add_gpu()
    fine, unreadable = queued(priority=3), queued()
    with transaction() as session:
        session.execute(text("UPDATE jobs SET lane_id = NULL, turn_at = now()"))
        session.execute(
            text('UPDATE jobs SET spec = \'{"rank": "many"}\' WHERE id = :job_id'),
            {"job_id": unreadable},
        )
    assert place() == []
    with transaction() as session:
        assert lanes.adopt_jobs(session) == 2
    with transaction() as session:
        assert lanes.adopt_jobs(session) == 0
    assert placed_jobs() == [fine]
    assert state(unreadable) == JobState.FAILED
    assert (job(unreadable).error or {})["where"] == "jobs.spec"


def test_a_job_whose_row_became_unreadable_fails_at_its_claim() -> None:
    add_gpu()
    job_id = queued()
    place()
    with transaction() as session:
        session.execute(text('UPDATE jobs SET spec = spec || \'{"rank": "many"}\''))
    assert claim(job_id, Stage.TRAIN) is None
    assert state(job_id) == JobState.FAILED


def test_a_field_of_a_later_version_does_not_stop_this_one() -> None:
    add_gpu()
    job_id = queued()
    place()
    with transaction() as session:
        session.execute(text("UPDATE jobs SET spec = spec || '{\"invented_later\": 1}'"))
    assert claimed(job_id, Stage.TRAIN).spec.rank == 16


# Urgent and preemptible


def preempt() -> list[tuple[str, str]]:
    with transaction() as session:
        return preemption.preempt(session)


def test_an_urgent_job_goes_before_everybody_else() -> None:
    queued("a")
    urgent = queued("b", urgent=True)
    limit("b", weight=0.01)
    add_gpu()
    assert placed_jobs() == [urgent]


def test_an_urgent_job_takes_the_gpu_of_the_victim_that_loses_least() -> None:
    add_gpu(0)
    add_gpu(1)
    add_gpu(2)
    made = [queued(preemptible=True), queued(preemptible=True), queued()]
    place()
    taken = [claimed(one, Stage.TRAIN) for one in made]
    with transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET stage_at = stage_at - interval '10 minutes' WHERE job_id = :id"
            ),
            {"id": made[0]},
        )
    urgent = queued("b", urgent=True)
    assert place() == []
    assert preempt() == [(urgent, made[1])]
    assert job(made[1]).stop_requested == StopReason.PREEMPT
    assert preempt() == []  # one victim is enough
    end(made[1], taken[1].fence, Outcome.PREEMPTED)
    assert state(made[1]) == JobState.QUEUED
    assert preempt() == []  # its GPU comes free in a moment
    assert placed_jobs() == [urgent]


def test_a_fresh_checkpoint_makes_a_victim_lose_little() -> None:
    add_gpu(0)
    add_gpu(1)
    old, young = queued(preemptible=True), queued(preemptible=True)
    place()
    taken = claimed(old, Stage.TRAIN)
    claimed(young, Stage.TRAIN)
    with transaction() as session:
        session.execute(text("UPDATE attempts SET stage_at = stage_at - interval '10 minutes'"))
        session.execute(
            text(
                "INSERT INTO checkpoints (job_id, fence, step, url, size_bytes, trained_tokens,"
                " metrics) VALUES (:job_id, :fence, 1, 'x', 1, 1, '{}')"
            ),
            {"job_id": old, "fence": taken.fence},
        )
    urgent = queued("b", urgent=True)
    assert preempt() == [(urgent, old)]


@pytest.mark.parametrize("why", ["not preemptible", "not allowed", "over a limit", "needs more"])
def test_nobody_makes_room_when(why: str) -> None:
    add_gpu()
    victim = queued(preemptible=why != "not preemptible")
    place()
    claimed(victim, Stage.TRAIN)
    queued("b", urgent=True, gpu_memory_gb=99 if why == "needs more" else None)
    if why == "not allowed":
        limit("b", may_preempt=False)
    if why == "over a limit":
        limit("b", max_running_jobs=0)
    assert preempt() == []


def test_a_second_victim_only_for_a_second_urgent_job() -> None:
    add_gpu(0)
    add_gpu(1)
    for one in [queued(preemptible=True), queued(preemptible=True)]:
        place()
        claimed(one, Stage.TRAIN)
    urgent = [queued("b", urgent=True), queued("b", urgent=True)]
    assert sorted(pair[0] for pair in preempt()) == sorted(urgent)
    assert preempt() == []


# Jobs after jobs


def release() -> int:
    with transaction() as session:
        return dependencies.release_jobs(session)


def test_a_job_after_another_waits_prepared_and_goes_when_that_one_has_completed() -> None:
    first = records.running(evaluate=False)
    second = queued(after=first.job_id)
    add_gpu(1)
    assert place() == []
    assert release() == 0
    waited_since = job(second).queued_at
    end(first.job_id, first.fence, Outcome.COMPLETED)
    assert release() == 1
    assert job(second).queued_at > waited_since
    assert placed_jobs() == [second]


def test_after_a_completed_job_there_is_nothing_to_wait_for() -> None:
    first = records.running(evaluate=False)
    end(first.job_id, first.fence, Outcome.COMPLETED)
    assert job(submit(after=first.job_id)).waits_for is None


def test_a_cancelled_predecessor_fails_its_successors_one_after_the_other() -> None:
    first = submit()
    second = submit(after=first)
    third = submit(after=second)
    with transaction() as session:
        jobs.request_stop(session, first, StopReason.CANCEL)
    release()
    assert state(second) == JobState.FAILED
    assert first in (job(second).error or {})["message"]
    release()
    assert state(third) == JobState.PENDING  # a failed job may be run again


def test_a_failed_predecessor_may_be_run_again() -> None:
    first = records.running(evaluate=False)
    second = queued(after=first.job_id)
    end(first.job_id, first.fence, Outcome.FAILED)
    assert release() == 0
    with transaction() as session:
        jobs.retry_job(session, first.job_id)
    place()
    again = claimed(first.job_id, Stage.TRAIN)
    end(again.job_id, again.fence, Outcome.COMPLETED)
    assert release() == 1
    assert placed_jobs() == [second]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"after": "ftjob-none"}, "after"),
        ({"start_from_adapter": True, "rank": 4}, "rank"),
        ({"start_from_adapter": True, "base_model": "scripted:?steps=9"}, "base_model"),
        ({"start_from_adapter": True, "alpha": 8}, "alpha"),
    ],
)
def test_a_predecessor_that_cannot_serve_is_refused(fields: dict[str, Any], where: str) -> None:
    first = submit()
    with pytest.raises(SpecError) as caught:
        submit(**({"after": first} | fields))
    assert caught.value.where == where


def test_a_job_of_another_tenant_is_no_predecessor() -> None:
    first = submit("a")
    with pytest.raises(SpecError, match="there is no job"):
        submit("b", after=first)


def test_the_claim_names_the_adapter_to_start_from() -> None:
    first = records.running(evaluate=False)
    with transaction() as session:
        session.execute(text("UPDATE jobs SET adapter_url = '/adapters/1'"))
    end(first.job_id, first.fence, Outcome.COMPLETED)
    second = queued(after=first.job_id, start_from_adapter=True)
    place()
    assert claimed(second, Stage.TRAIN).start_adapter_url == "/adapters/1"

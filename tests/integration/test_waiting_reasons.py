"""One case for each reason for which a job waits, with its numbers and the expected start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from models.queries import gpus, jobs, preemption, tenants, waiting
from models.queries.attempts import Claim
from models.queries.waiting import Why
from models.session import transaction
from models.states import Outcome, Stage, StopReason
from tests import records
from tests.records import add_gpu, claimed, end, job, place, queued, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def why(job_id: str) -> Why:
    with transaction() as session:
        return waiting.why_waiting(session, job_id)


def limit(tenant: str = "default", user: str | None = None, **changes: Any) -> None:
    with transaction() as session:
        if user is None:
            tenants.change_tenant(session, tenant, changes)
        else:
            tenants.change_user(session, tenant, user, changes)


def execute(statement: str, **parameters: Any) -> None:
    with transaction() as session:
        session.execute(text(statement), parameters)


def running(tenant: str = "default", **fields: Any) -> Claim:
    """A job that runs on GPU 0."""
    add_gpu(0)
    job_id = queued(tenant, **fields)
    assert [one.job_id for one in place()] == [job_id]
    return claimed(job_id, Stage.TRAIN)


def seconds_until(start: datetime | None) -> float:
    assert start is not None
    return (start - datetime.now(UTC)).total_seconds()


# Limits


def test_the_tenants_limit_of_running_jobs() -> None:
    running("a")
    add_gpu(1)
    waits = queued("a")
    limit("a", max_running_jobs=1)
    said = why(waits)
    assert (said.reason, said.limit, said.limit_of) == ("limit", "max_running_jobs", "tenant")
    assert "Tenant a may run 1 job at once (max_running_jobs), and 1 runs." in said.sentence
    assert said.position == 1  # when that one ends
    assert place() == []
    limit("a", max_running_jobs=2)
    assert why(waits).reason == "next"


def test_the_users_limit_of_running_jobs() -> None:
    running()
    add_gpu(1)
    waits = queued()
    limit(user="ada", max_running_jobs=1)
    said = why(waits)
    assert (said.reason, said.limit, said.limit_of) == ("limit", "max_running_jobs", "user")
    assert "User ada of tenant default may run 1 job" in said.sentence
    assert place() == []


def test_gpu_hours_of_the_month() -> None:
    add_gpu()
    waits = queued()
    limit(gpu_hours_per_month=1)
    execute(
        "INSERT INTO usage_days SELECT id, (now() AT TIME ZONE 'UTC')::date, 5400 FROM users",
    )
    said = why(waits)
    assert (said.reason, said.limit, said.limit_of) == ("limit", "gpu_hours_per_month", "tenant")
    assert "may use 1 GPU-hours a month (gpu_hours_per_month), and has used 1.5" in said.sentence
    assert said.position is None
    assert said.expected_start_at is not None
    assert (said.expected_start_at.day, said.expected_start_at.hour) == (1, 0)
    assert timedelta(0) < timedelta(seconds=seconds_until(said.expected_start_at))
    assert place() == []


def test_disk() -> None:
    add_gpu()
    waits = queued()
    limit(user="ada", disk_bytes=2_000_000_000)
    execute("UPDATE users SET disk_used_bytes = 3000000000")
    said = why(waits)
    assert (said.reason, said.limit, said.limit_of) == ("limit", "disk_bytes", "user")
    assert "may keep 2 GB on disk (disk_bytes), and keeps 3 GB." in said.sentence
    assert (said.position, said.expected_start_at) == (None, None)
    assert place() == []


def test_prepared_jobs_that_wait() -> None:
    queued()
    waits = submit()
    limit(max_queued_jobs=1)
    said = why(waits)
    assert (said.reason, said.limit, said.limit_of) == ("limit", "max_queued_jobs", "tenant")
    assert "may have 1 prepared job waiting (max_queued_jobs), and has 1" in said.sentence
    assert records.place_preparation() == 0
    limit(max_queued_jobs=2)
    assert why(waits).reason == "to_prepare"
    limit(user="ada", max_queued_jobs=1)
    assert why(waits).limit_of == "user"


# What it asks of a GPU


@pytest.mark.parametrize(
    ("asks", "words"),
    [
        (
            {"gpu_memory_gb": 80},
            "the memory it asks for (80 GB); the largest has 1.07 GB",
        ),
        ({"gpu_model": "H100"}, "model it asks for (h100); there are: cpu (1 thread)"),
        ({"gpu_labels": {"zone": "a"}}, "label it asks for (zone=a)"),
    ],
)
def test_no_gpu_has_it(asks: dict[str, Any], words: str) -> None:
    add_gpu()
    waits = queued(**asks)
    said = why(waits)
    assert said.reason == "no_such_gpu"
    assert words in said.sentence
    assert (said.position, said.expected_start_at) == (None, None)
    assert place() == []


def test_no_gpu_has_all_of_it_together() -> None:
    add_gpu(0)
    add_gpu(1)
    execute('UPDATE gpus SET labels = \'{"zone": "a"}\' WHERE index = 0')
    execute("UPDATE gpus SET memory_bytes = 80000000000 WHERE index = 1")
    said = why(queued(gpu_memory_gb=40, gpu_labels={"zone": "a"}))
    assert said.reason == "no_such_gpu"
    assert "all that it asks for together (40 GB, zone=a)" in said.sentence


def test_only_busy_gpus_have_it() -> None:
    add_gpu(0)
    execute('UPDATE gpus SET labels = \'{"zone": "a"}\'')
    first = queued(gpu_labels={"zone": "a"})
    assert [one.job_id for one in place()] == [first]
    add_gpu(1)
    said = why(queued(gpu_labels={"zone": "a"}))
    assert said.reason == "such_gpus_busy"
    assert "All GPUs that have what it asks for (zone=a) are busy (1)." in said.sentence
    assert said.position == 1


def test_those_that_have_it_are_cordoned_or_gone() -> None:
    add_gpu(0)
    add_gpu(1)
    execute('UPDATE gpus SET labels = \'{"zone": "a"}\' WHERE index = 1')
    waits = queued(gpu_labels={"zone": "a"})
    with transaction() as session:
        gpus.set_cordon(session, "host", 1, on=True)
    assert why(waits).reason == "gpus_cordoned"
    assert "that have what it asks for (zone=a)" in why(waits).sentence
    with transaction() as session:
        gpus.set_cordon(session, "host", 1, on=False)
    execute("UPDATE gpus SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE index = 1")
    assert why(waits).reason == "no_worker"


# The state of the pool and of the job


def test_a_cordoned_gpu_that_is_busy_takes_no_other_job() -> None:
    running()
    waits = queued()
    assert why(waits).reason == "gpus_busy"
    with transaction() as session:
        gpus.set_cordon(session, "host", 0, on=True)
    assert why(waits).reason == "gpus_cordoned"


def test_a_gpu_that_others_hold_beside_a_busy_one() -> None:
    running()
    add_gpu(1, reported="held")
    assert why(queued()).reason == "gpus_busy"


def test_it_waits_for_another_job() -> None:
    taken = running()
    waits = queued(after=taken.job_id)
    said = why(waits)
    assert said.reason == "waits_for"
    assert f"job {taken.job_id}, which is running" in said.sentence
    end(taken.job_id, taken.fence, Outcome.FAILED)
    assert f"which is failed: `celora retry {taken.job_id}`" in why(waits).sentence


def test_paused_and_resumed() -> None:
    running()
    waits = queued()
    with transaction() as session:
        jobs.request_stop(session, waits, StopReason.PAUSE)
    assert why(waits).reason == "paused"
    with transaction() as session:
        jobs.resume_job(session, waits)
    assert why(waits).reason == "gpus_busy"


def test_another_job_makes_room_for_an_urgent_one() -> None:
    victim = running(preemptible=True)
    urgent = queued(urgent=True)
    with transaction() as session:
        assert preemption.preempt(session) == [(urgent, victim.job_id)]
    said = why(urgent)
    assert said.reason == "preempting"
    assert victim.job_id in said.sentence
    assert said.position == 1
    assert seconds_until(said.expected_start_at) < 15  # once the other has written a checkpoint


# When it starts


def test_it_starts_when_the_running_job_ends_at_its_own_pace() -> None:
    taken = running(evaluate=False)
    waits = queued(evaluate=False)
    execute(
        "UPDATE jobs SET step = 50, total_steps = 200, progress_at = clock_timestamp()"
        " WHERE id = :job_id",
        job_id=taken.job_id,
    )
    execute("UPDATE attempts SET claimed_at = claimed_at - interval '100 s' WHERE ended_at IS NULL")
    said = why(waits)
    assert said.reason == "gpus_busy"
    assert said.basis == "after 1 job, by its own pace"
    assert seconds_until(said.expected_start_at) == pytest.approx(300, abs=5)


def test_without_a_measurement_it_says_what_it_assumes() -> None:
    running()
    first, second = queued(), queued()
    assert "no measurement yet: assumed 30 min" in (why(first).basis or "")
    starts = [seconds_until(why(one).expected_start_at) for one in (first, second)]
    assert starts[0] == pytest.approx(1800, abs=5)
    assert starts[1] == pytest.approx(3600, abs=5)


def test_waiting_jobs_are_measured_by_finished_ones_on_the_same_base() -> None:
    """Two of 3 steps took 40 s; the job that waits ahead has as many steps."""
    for _ in range(2):
        done = running(evaluate=False)
        execute(
            "UPDATE attempts SET claimed_at = clock_timestamp() - interval '40 s'"
            " WHERE ended_at IS NULL"
        )
        execute("UPDATE jobs SET step = 3 WHERE id = :job_id", job_id=done.job_id)
        end(done.job_id, done.fence, Outcome.COMPLETED)
    running(evaluate=False)
    ahead, last = queued(evaluate=False), queued(evaluate=False)
    assert "after 1 job, from 2 finished jobs on the same base model" in (why(ahead).basis or "")
    assert seconds_until(why(ahead).expected_start_at) == pytest.approx(40, abs=3)
    assert seconds_until(why(last).expected_start_at) == pytest.approx(80, abs=4)


def test_the_first_job_of_a_trainer_is_no_measure_for_the_others() -> None:
    """It waited 400 s for its process; the second, on the same one, took 40 s."""
    for pid, seconds in ((7, 400), (7, 40)):
        done = running(evaluate=False)
        execute(
            "UPDATE attempts SET trainer_pid = :pid,"
            " claimed_at = clock_timestamp() - make_interval(secs => :seconds)"
            " WHERE ended_at IS NULL",
            pid=pid,
            seconds=seconds,
        )
        end(done.job_id, done.fence, Outcome.COMPLETED)
    running(evaluate=False)
    assert seconds_until(why(queued()).expected_start_at) == pytest.approx(40, abs=3)


def test_a_free_gpu_is_a_start_at_once() -> None:
    add_gpu()
    said = why(queued())
    assert (said.reason, said.basis) == ("next", "a GPU is free")
    assert seconds_until(said.expected_start_at) < 2


def test_what_the_forecast_takes_for_a_limit_is_one_for_the_placement() -> None:
    """One tenant for each limit, reached and not: both must agree on who may go."""
    for index in range(12):
        add_gpu(index)
    changes: dict[str, dict[str, Any]] = {
        "free": {},
        "hours": {"gpu_hours_per_month": 1},
        "hours-left": {"gpu_hours_per_month": 3},
        "disk": {"disk_bytes": 10},
        "disk-left": {"disk_bytes": 30},
        "user-hours": {"user_gpu_hours_per_month": 1},
        "user-disk": {"user_disk_bytes": 20},
        "none": {"max_running_jobs": 0},
        "user-none": {"user_max_running_jobs": 0},
    }
    made = {tenant: queued(tenant) for tenant in changes}
    for tenant, change in changes.items():
        limit(tenant, **change)
    execute("UPDATE users SET disk_used_bytes = 20")
    execute("INSERT INTO usage_days SELECT id, (now() AT TIME ZONE 'UTC')::date, 7200 FROM users")
    said = {tenant: why(job_id).reason for tenant, job_id in made.items()}
    placed = {job(one.job_id).tenant.name for one in place()}
    assert placed == {"free", "hours-left", "disk-left"}
    assert {tenant for tenant, reason in said.items() if reason == "next"} == placed
    assert {said[tenant] for tenant in set(made) - placed} == {"limit"}

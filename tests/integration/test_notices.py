"""Messages are written with what they tell of: to whom it concerns, once each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select, text

from models import secrets
from models.errors import InputError, SpecError
from models.notices import Format, Kind, Notice
from models.queries import jobs, notices, targets
from models.session import transaction
from models.states import Outcome, Stage, StopReason
from models.tables import Delivery, Job, JobTarget, Target
from tests import records
from tests.environment import variables

pytestmark = pytest.mark.usefixtures("_empty")

EVERYTHING = (
    Notice.STARTED,
    Notice.COMPLETED,
    Notice.FAILED,
    Notice.CANCELLED,
    Notice.WAITING,
    Notice.BUDGET,
)


@pytest.fixture(scope="module")
def _key(database: str) -> Iterator[None]:  # noqa: ARG001 (after the database)
    with variables(CELORA_SECRET_KEY=secrets.new_key()):
        yield


@pytest.fixture
def _empty(_key: None) -> None:
    records.clear()


def add(
    name: str = "ops",
    *,
    events: tuple[Notice, ...] = EVERYTHING,
    tenant: str = "default",
    body: Format = Format.CELORA,
    wait_seconds: float = 3600,
) -> int:
    with transaction() as session:
        session.execute(
            text("INSERT INTO tenants (name) VALUES (:name) ON CONFLICT DO NOTHING"),
            {"name": tenant},
        )
        return targets.add_target(
            session,
            tenant=tenant,
            name=name,
            kind=Kind.WEBHOOK,
            format=body,
            sealed_url=secrets.seal("https://hooks.example.com/x"),
            sealed_secret=secrets.seal("whsec_AAAA"),
            shown="https://hooks.example.com/…",
            events=events,
            wait_seconds=wait_seconds,
            budget_percent=80,
            created_by="ada",
        )


def told(name: str = "ops") -> list[str]:
    with transaction() as session:
        return list(
            session.scalars(
                select(Delivery.notice)
                .join(Target, Target.id == Delivery.target_id)
                .where(Target.name == name)
                .order_by(Delivery.id)
            )
        )


def _completes() -> None:
    claim = records.running(evaluate=False)
    records.end(claim.job_id, claim.fence, Outcome.COMPLETED)


def _fails() -> None:
    claim = records.running()
    error = {"code": "training_failed", "message": "it broke"}
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error=error)


def _fails_before_it_starts() -> None:
    job_id = records.submit()
    records.place_preparation()
    claim = records.claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
    records.end(job_id, claim.fence, Outcome.FAILED, error={"code": "invalid_data"})


def _is_cancelled_while_it_waits() -> None:
    _stop(records.queued())


def _is_cancelled_while_it_is_placed() -> None:
    records.add_gpu()
    job_id = records.queued()
    records.place()
    _stop(job_id)


def _is_cancelled_while_it_runs() -> None:
    claim = records.running()
    _stop(claim.job_id)
    records.end(claim.job_id, claim.fence, Outcome.CANCELLED)


def _fails_with_the_job_before_it() -> None:
    from models.queries.dependencies import release_jobs

    first = records.queued()
    records.submit(after=first)
    _stop(first)
    with transaction() as session:
        release_jobs(session)


def _is_preempted_and_completes() -> None:
    claim = records.running(evaluate=False)
    records.end(claim.job_id, claim.fence, Outcome.PREEMPTED)
    records.place()
    again = records.claimed(claim.job_id, Stage.TRAIN)
    records.end(claim.job_id, again.fence, Outcome.COMPLETED)


def _stop(job_id: str) -> None:
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (_completes, ["started", "completed"]),
        (_fails, ["started", "failed"]),
        (_fails_before_it_starts, ["failed"]),
        (_is_cancelled_while_it_waits, ["cancelled"]),
        (_is_cancelled_while_it_is_placed, ["cancelled"]),
        (_is_cancelled_while_it_runs, ["started", "cancelled"]),
        (_fails_with_the_job_before_it, ["cancelled", "failed"]),
        (_is_preempted_and_completes, ["started", "completed"]),
    ],
)
def test_each_change_is_told_once(life: Callable[[], None], expected: list[str]) -> None:
    add()
    life()
    assert told() == expected


def test_a_change_that_is_rolled_back_is_not_told() -> None:
    add()
    job_id = records.queued()
    with pytest.raises(ZeroDivisionError), transaction() as session:  # noqa: PT012 (as a crash)
        jobs.request_stop(session, job_id, StopReason.CANCEL)
        raise ZeroDivisionError
    assert told() == []


def test_a_target_hears_of_what_it_asked_for_and_of_its_own_tenant() -> None:
    add("failures", events=(Notice.FAILED,))
    add("others", tenant="physics")
    _completes()
    assert (told("failures"), told("others")) == ([], [])


def test_a_message_says_nothing_of_the_data() -> None:
    add()
    claim = records.running()
    error = {
        "code": "invalid_data",
        "message": "row 3 says 'my password is hunter2'",
        "problems": [{"line": 3, "what": "hunter2"}],
        "problem_count": 7,
    }
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error=error)
    with transaction() as session:
        data = session.scalars(select(Delivery.data).where(Delivery.notice == "failed")).one()
    assert "hunter2" not in str(data)
    assert data["error"] == {
        "code": "invalid_data",
        "message": "the data cannot be used (7 problems)",
    }


def test_a_job_names_who_hears_of_it_beside_its_tenants_targets() -> None:
    add("mine", events=())
    add("ops", events=(Notice.CANCELLED,))
    _stop(records.queued(notify=("mine", "ops"), notify_on=("cancelled",)))
    _stop(records.queued())
    assert told("mine") == ["cancelled"]
    assert told("ops") == ["cancelled", "cancelled"]  # not twice of the first


def test_a_job_that_names_no_target_of_its_tenant_is_refused() -> None:
    add("theirs", tenant="physics")
    with pytest.raises(SpecError, match="notify: tenant default has no target 'theirs'"):
        records.submit(notify=("theirs",))


def test_a_target_of_openais_format_gets_what_openai_knows() -> None:
    with pytest.raises(InputError, match="'started'"):
        add("client", body=Format.OPENAI)
    add("client", body=Format.OPENAI, events=(Notice.COMPLETED, Notice.FAILED))
    with pytest.raises(SpecError, match="notify_on"):
        records.submit(notify=("client",), notify_on=("waiting",))
    _completes()
    assert told("client") == ["completed"]


# Waiting too long


def queued_ago(job_id: str, seconds: float) -> None:
    """As if it had been queued then: no test waits an hour."""
    with transaction() as session:
        session.execute(
            text(
                "UPDATE jobs SET queued_at = clock_timestamp() - make_interval(secs => :seconds)"
                " WHERE id = :id"
            ),
            {"id": job_id, "seconds": seconds},
        )


def look() -> int:
    with transaction() as session:
        return notices.tell_overdue(session)


def test_a_job_that_waits_too_long_is_told_of_once() -> None:
    add(wait_seconds=600)
    with transaction() as session:
        session.execute(text("UPDATE notification_targets SET created_at = now() - interval '1 d'"))
    queued_ago(late := records.queued(), 601)
    queued_ago(records.queued(), 500)
    assert look() == 1
    assert look() == 0
    with transaction() as session:
        message = session.scalars(select(Delivery)).one()
    assert (message.job_id, message.notice) == (late, "waiting")
    assert message.data["waited_seconds"] >= 601


def test_of_many_that_are_late_some_are_told_of_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "_LOOKED_AT_ONCE", 2)
    add(wait_seconds=600)
    with transaction() as session:
        session.execute(text("UPDATE notification_targets SET created_at = now() - interval '1 d'"))
    late = [records.queued() for _ in range(4)]
    for job_id, seconds in zip(late, (904, 903, 903, 901), strict=True):
        queued_ago(job_id, seconds)
    with transaction() as session:  # two in the same moment, which are told of together
        moment = "(SELECT max(queued_at) FROM jobs WHERE id = :one)"
        session.execute(
            text(f"UPDATE jobs SET queued_at = {moment} WHERE id = :two"),  # noqa: S608
            {"one": late[1], "two": late[2]},
        )
    assert [look() for _ in range(3)] == [3, 1, 0]
    with transaction() as session:
        told = session.scalars(select(Delivery.job_id).order_by(Delivery.id)).all()
    assert sorted(map(str, told)) == sorted(late)


def test_what_waited_too_long_before_there_was_a_target_is_not_told() -> None:
    queued_ago(records.queued(), 10_000)
    add(wait_seconds=600)
    assert look() == 0


def test_a_job_that_comes_after_another_does_not_wait_for_a_gpu() -> None:
    add(wait_seconds=600)
    first = records.queued()
    queued_ago(records.queued(after=first), 700)
    assert look() == 0


def test_a_jobs_own_rule_is_looked_at_until_it_is_told_or_over() -> None:
    add("mine", events=())
    rule: dict[str, Any] = {
        "notify": ("mine",),
        "notify_on": ("waiting",),
        "notify_wait_seconds": 60,
    }
    late, running, over = (records.queued(**rule) for _ in range(3))
    with transaction() as session:
        row = session.get_one(Job, running)
        row.state = "running"
    _stop(over)
    for job_id in (late, running, over):
        queued_ago(job_id, 61)
    assert look() == 0  # their time has not come
    with transaction() as session:
        session.execute(text("UPDATE job_targets SET look_at = clock_timestamp()"))
    assert look() == 1
    with transaction() as session:
        left = session.scalars(select(JobTarget.job_id).where(JobTarget.look_at.is_not(None))).all()
    assert left == [running]  # it may be put back into the queue
    with transaction() as session:  # another wait of the same job
        jobs.request_stop(session, late, StopReason.PAUSE)
        jobs.resume_job(session, late)
    queued_ago(late, 61)
    with transaction() as session:
        due = "UPDATE job_targets SET look_at = clock_timestamp() WHERE look_at IS NOT NULL"
        session.execute(text(due))
    assert look() == 1


def test_a_job_that_waits_anew_is_looked_at_when_its_time_comes() -> None:
    add("mine", events=())
    job_id = records.queued(notify=("mine",), notify_on=("waiting",), notify_wait_seconds=3600)
    queued_ago(job_id, 3590)
    with transaction() as session:
        session.execute(text("UPDATE job_targets SET look_at = clock_timestamp()"))
    assert look() == 0
    due = text(
        "SELECT look_at = queued_at + interval '1h' FROM job_targets JOIN jobs ON id = job_id"
    )
    with transaction() as session:
        assert session.scalars(due).one()


# The month's GPU hours


def test_a_budget_that_is_nearly_spent_is_told_once_a_month() -> None:
    add()
    claim = records.running(evaluate=False)
    records.end(claim.job_id, claim.fence, Outcome.COMPLETED)
    with transaction() as session:
        session.execute(text("UPDATE tenants SET gpu_hours_per_month = 10"))
        session.execute(text("UPDATE tenants SET user_gpu_hours_per_month = 100"))
        session.execute(text("UPDATE usage_days SET gpu_seconds = 7.9 * 3600"))
        assert notices.tell_budgets(session) == 0
        session.execute(text("UPDATE usage_days SET gpu_seconds = 8.1 * 3600"))
        assert notices.tell_budgets(session) == 1
        assert notices.tell_budgets(session) == 0
        session.execute(text("UPDATE users SET gpu_hours_per_month = 9"))
        assert notices.tell_budgets(session) == 1  # the user's own
        data = session.scalars(
            select(Delivery.data).where(Delivery.notice == "budget").order_by(Delivery.id)
        ).all()
    assert [(one["user"], one["gpu_hours_used"], one["gpu_hours_per_month"]) for one in data] == [
        (None, 8.1, 10),
        ("ada", 8.1, 9),
    ]


def test_looking_for_long_waits_goes_along_an_index() -> None:
    add(wait_seconds=600)
    with transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        explain = text(f"EXPLAIN {notices._OVERDUE_OF_TENANTS.text}")
        plan = "\n".join(session.scalars(explain, {"limit": 500}).all())
    assert "ix_jobs_waiting" in plan

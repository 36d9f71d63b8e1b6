"""Jobs as their owners see them: submit, find, list, stop, resume, retry."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.errors import InputError, NotFoundError, SpecError, StateError, WorkerLostError
from models.queries import attempts, gpus, history, jobs
from models.session import transaction
from models.spec import JobSpec
from models.states import JobState, Outcome, Stage, StopReason
from models.tables import Job
from tests import records
from tests.records import add_gpu, claim, end, job, place, queued, running, spec, state, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def stop(job_id: str, reason: StopReason) -> Job:
    with transaction() as session:
        return jobs.request_stop(session, job_id, reason)


def resume(job_id: str) -> Job:
    with transaction() as session:
        return jobs.resume_job(session, job_id)


def retry(job_id: str) -> Job:
    with transaction() as session:
        return jobs.retry_job(session, job_id)


def kinds(job_id: str) -> list[str]:
    with transaction() as session:
        return [event.kind for event in history.events_of(session, job_id)]


# Submitting


def test_submit_puts_the_whole_specification_on_record() -> None:
    asked = spec(name="first try", priority=7, metadata={"team": "α"})
    with transaction() as session:
        made = jobs.insert_job(session, asked, tenant="physics", user="ada")
    found = job(made.id)
    assert re.fullmatch(r"ftjob-[A-Za-z0-9]{24}", found.id)
    assert JobSpec.model_validate(found.spec) == asked
    assert (found.state, found.stage, found.fence) == ("pending", "preprocess", 0)
    assert (found.tenant.name, found.user_name, found.name) == ("physics", "ada", "first try")
    assert (found.base_model, found.method, found.priority) == (asked.base_model, "lora", 7)
    assert kinds(found.id) == ["submitted"]


def test_the_returned_job_can_be_read_after_the_transaction() -> None:
    with transaction() as session:
        made = jobs.insert_job(session, spec(), tenant="new", user="ada")
    assert made.tenant.name == "new"
    assert made.created_at.tzinfo is not None


def test_a_repeated_key_returns_the_first_job() -> None:
    def once(base_model: str, tenant: str = "default") -> Job:
        with transaction() as session:
            return jobs.insert_job(
                session, spec(base_model=base_model), tenant=tenant, user="ada", idempotency_key="k"
            )

    first = once("scripted:a")
    again = once("scripted:b")
    assert again.id == first.id
    assert again.base_model == "scripted:a"
    assert kinds(first.id) == ["submitted"]
    assert once("scripted:c", tenant="other").id != first.id
    with transaction() as session:
        found = jobs.find_by_key(session, "default", "k")
        assert found is not None
        assert found.id == first.id
        assert jobs.find_by_key(session, "default", "never") is None


def test_one_key_submitted_at_once_by_many_makes_one_job() -> None:
    def once(_: int) -> str:
        with transaction() as session:
            return jobs.insert_job(
                session, spec(), tenant="racing", user="ada", idempotency_key="k"
            ).id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(once, range(16)))
    assert len(set(made)) == 1
    with transaction() as session:
        assert len(jobs.list_jobs(session)) == 1


@pytest.mark.parametrize("tenant", ["", "x" * 65, "two\nlines"])
def test_a_tenant_needs_a_name_that_can_be_shown(tenant: str) -> None:
    with pytest.raises(InputError, match="tenant"), transaction() as session:
        jobs.insert_job(session, spec(), tenant=tenant, user="ada")


def test_a_nul_character_is_refused_by_name_of_the_field() -> None:
    for fields in ({"metadata": {"a": "\0"}}, {"dataset": "x\0"}, {"target_modules": ["q\0"]}):
        with pytest.raises(SpecError) as caught, transaction() as session:
            jobs.insert_job(session, spec(**fields), tenant="default", user="ada")
        assert caught.value.where == next(iter(fields))
    submit(dataset=r"C:\x00\u0000")  # these are no NULs
    with pytest.raises(InputError), transaction() as session:
        jobs.insert_job(session, spec(), tenant="default", user="a\0")


# Finding


def test_pages_stay_put_while_jobs_arrive() -> None:
    made = [submit() for _ in range(5)]
    with transaction() as session:
        first = [one.id for one in jobs.list_jobs(session, limit=2)]
    submit()
    with transaction() as session:
        second = [one.id for one in jobs.list_jobs(session, limit=2, after=first[-1])]
        third = [one.id for one in jobs.list_jobs(session, limit=2, after=second[-1])]
        assert jobs.list_jobs(session, limit=2, after=third[-1]) == []
    assert first + second + third == made[::-1]


def test_list_filters_by_tenant_and_state() -> None:
    ours, theirs = submit("ours"), submit("theirs")
    stop(theirs, StopReason.CANCEL)
    with transaction() as session:

        def ids(tenant: str | None = None, states: list[JobState] | None = None) -> list[str]:
            return [one.id for one in jobs.list_jobs(session, tenant=tenant, states=states)]

        assert ids(tenant="ours") == [ours]
        assert ids(tenant="nobody") == []
        assert ids(states=[JobState.CANCELLED]) == [theirs]
        assert ids(states=[JobState.CANCELLED, JobState.PENDING]) == [theirs, ours]
        assert ids(states=[]) == []


def test_a_job_is_found_by_the_beginning_of_its_id() -> None:
    with transaction() as session, pytest.raises(NotFoundError):
        jobs.resolve_job_id(session, "last")
    first, second = submit(), submit()
    with transaction() as session:
        resolve = jobs.resolve_job_id
        assert resolve(session, first) == first
        assert resolve(session, first[:-3]) == first
        assert resolve(session, second.removeprefix("ftjob-")[:20]) == second
        assert resolve(session, "last") == second
        with pytest.raises(InputError, match="several"):
            resolve(session, "ftjob-")
        for nonsense in ("ftjob-" + "0" * 24, "no such job", "%", "ftjob-\0"):
            with pytest.raises(NotFoundError):
                resolve(session, nonsense)
        with pytest.raises(NotFoundError):
            jobs.get_job(session, "ftjob-nothing")


# Stopping


def test_cancel_of_a_pending_job() -> None:
    job_id = submit()
    cancelled = stop(job_id, StopReason.CANCEL)
    assert cancelled.state == JobState.CANCELLED
    assert cancelled.finished_at is not None
    assert stop(job_id, StopReason.CANCEL).state == JobState.CANCELLED
    assert kinds(job_id) == ["submitted", "cancelled"]
    assert records.place_preparation() == 0


def test_cancel_of_a_queued_job() -> None:
    add_gpu()
    job_id = queued()
    assert stop(job_id, StopReason.CANCEL).state == JobState.CANCELLED
    assert place() == []


def test_cancel_of_a_placed_job_makes_its_ticket_stale() -> None:
    add_gpu()
    job_id = queued()
    (placed,) = place()
    assert stop(job_id, StopReason.CANCEL).state == JobState.CANCELLED
    assert claim(job_id, Stage.TRAIN, fence=placed.fence) is None
    assert job(job_id).fence > placed.fence
    assert records.attempt(job_id, placed.fence).outcome == Outcome.CANCELLED
    with transaction() as session:
        assert [gpu.state for gpu in gpus.list_gpus(session)] == ["free"]


def test_cancel_of_a_job_being_prepared() -> None:
    job_id = submit()
    records.place_preparation()
    taken = records.claimed(job_id, Stage.PREPROCESS)
    assert stop(job_id, StopReason.CANCEL).state == JobState.PENDING
    with transaction() as session:
        renewal = attempts.renew(session, taken.attempt_id, 60)
    assert renewal is not None
    assert renewal.stop is StopReason.CANCEL
    # Even when the preparation is through before it looks: a cancel is not forgotten.
    assert end(job_id, taken.fence, Outcome.COMPLETED).state == JobState.CANCELLED


def test_cancel_of_a_running_job_asks_and_replaces_a_pause() -> None:
    taken = running()
    assert stop(taken.job_id, StopReason.PAUSE).state == JobState.RUNNING
    with transaction() as session:
        seen = attempts.look(session, taken.attempt_id)
    assert seen == attempts.Renewal(StopReason.PAUSE)
    asked = stop(taken.job_id, StopReason.CANCEL)
    assert (asked.state, asked.stop_requested) == (JobState.RUNNING, StopReason.CANCEL)
    assert stop(taken.job_id, StopReason.PAUSE).stop_requested == StopReason.CANCEL
    ended = end(taken.job_id, taken.fence, Outcome.CANCELLED, step=2)
    assert (ended.state, ended.stop_requested) == (JobState.CANCELLED, None)
    assert kinds(taken.job_id).count("stop_requested") == 2


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("drain", "preempt", "preempt"),
        ("preempt", "drain", "preempt"),
        ("pause", "preempt", "pause"),
        ("drain", "cancel", "cancel"),
    ],
)
def test_a_stronger_reason_replaces_a_weaker_one(first: str, second: str, left: str) -> None:
    taken = running()
    stop(taken.job_id, StopReason(first))
    assert stop(taken.job_id, StopReason(second)).stop_requested == left


def test_cancel_between_two_stages_keeps_the_tail_from_starting() -> None:
    taken = running()
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    stop(taken.job_id, StopReason.CANCEL)
    assert claim(taken.job_id, Stage.EVALUATE) is None
    assert state(taken.job_id) == JobState.CANCELLED
    assert records.attempt(taken.job_id, taken.fence).outcome == Outcome.CANCELLED


def test_a_stray_ticket_of_another_session_does_not_end_a_stopping_attempt() -> None:
    taken = running()
    stop(taken.job_id, StopReason.CANCEL)
    for stage in (Stage.TRAIN, Stage.EVALUATE):
        assert claim(taken.job_id, stage, worker_session="someone else") is None
        assert claim(taken.job_id, stage) is None  # a repeated ticket of the running stage
    assert state(taken.job_id) == JobState.RUNNING


def test_cancel_of_a_finished_job_changes_nothing() -> None:
    taken = running(evaluate=False)
    end(taken.job_id, taken.fence, Outcome.COMPLETED)
    assert stop(taken.job_id, StopReason.CANCEL).state == JobState.COMPLETED


def test_cancel_of_a_paused_job() -> None:
    job_id = submit()
    stop(job_id, StopReason.PAUSE)
    assert stop(job_id, StopReason.CANCEL).state == JobState.CANCELLED


@pytest.mark.parametrize("reason", [StopReason.PREEMPT, StopReason.DRAIN])
def test_a_placed_job_makes_room_at_once(reason: StopReason) -> None:
    add_gpu()
    job_id = queued()
    (placed,) = place()
    before = job(job_id)
    after = stop(job_id, reason)
    assert (after.state, after.queued_at) == (JobState.QUEUED, before.queued_at)
    assert claim(job_id, Stage.TRAIN, fence=placed.fence) is None
    assert len(place()) == 1


def test_preempt_of_a_job_that_only_waits_changes_nothing() -> None:
    job_id = queued()
    before = job(job_id)
    after = stop(job_id, StopReason.PREEMPT)
    assert (after.state, after.fence) == (before.state, before.fence)


@pytest.mark.fault(15)
def test_of_cancel_and_completion_the_first_commit_wins() -> None:
    """Both at once, again and again: one terminal state, and one of the two is told so."""
    for _ in range(20):
        records.clear()
        taken = running(evaluate=False)
        with ThreadPoolExecutor(2) as pool:
            ending = pool.submit(end, taken.job_id, taken.fence, Outcome.COMPLETED)
            stopping = pool.submit(stop, taken.job_id, StopReason.CANCEL)
            completed, seen = ending.result(), stopping.result()
        assert completed.state == JobState.COMPLETED
        assert seen.state in {JobState.COMPLETED, JobState.RUNNING}
        assert state(taken.job_id) == JobState.COMPLETED


# Pausing and resuming


def test_pause_and_resume_of_a_pending_job_are_idempotent() -> None:
    job_id = submit()
    for _ in range(2):
        assert stop(job_id, StopReason.PAUSE).state == JobState.PAUSED
    assert records.place_preparation() == 0
    for _ in range(2):
        assert resume(job_id).state == JobState.PENDING
    assert kinds(job_id) == ["submitted", "paused", "resumed"]
    assert records.place_preparation() == 1


def test_pause_of_a_running_job_and_its_resume() -> None:
    taken = running()
    stop(taken.job_id, StopReason.PAUSE)
    paused = end(taken.job_id, taken.fence, Outcome.PAUSED, step=2)
    assert (paused.state, paused.stage, paused.stop_requested) == ("paused", "train", None)
    assert records.attempt(taken.job_id, taken.fence).end_step == 2
    assert place() == []
    assert resume(taken.job_id).state == JobState.QUEUED
    assert len(place()) == 1


def test_a_resumed_job_goes_to_the_end_of_the_queue() -> None:
    first, second = queued(), queued()
    stop(first, StopReason.PAUSE)
    resume(first)
    add_gpu()
    assert [one.job_id for one in place()] == [second]


def test_resume_takes_back_a_pause_that_was_not_obeyed_yet() -> None:
    taken = running()
    stop(taken.job_id, StopReason.PAUSE)
    assert resume(taken.job_id).stop_requested is None
    # The trainer may have been stopping already: it goes on in a new attempt.
    assert end(taken.job_id, taken.fence, Outcome.PAUSED).state == JobState.QUEUED


def test_resume_does_not_take_back_a_cancel() -> None:
    taken = running()
    stop(taken.job_id, StopReason.CANCEL)
    assert resume(taken.job_id).stop_requested == StopReason.CANCEL


def test_what_is_over_cannot_be_paused_or_resumed() -> None:
    job_id = submit()
    stop(job_id, StopReason.CANCEL)
    with pytest.raises(StateError):
        stop(job_id, StopReason.PAUSE)
    with pytest.raises(StateError):
        resume(job_id)


# Retrying


def test_retry_of_a_failed_job() -> None:
    taken = running()
    error = WorkerLostError("it broke").record()
    failed = end(taken.job_id, taken.fence, Outcome.FAILED, error=error)
    assert (failed.state, failed.error) == (JobState.FAILED, error)
    assert failed.finished_at is not None
    for _ in range(2):
        again = retry(taken.job_id)
        assert (again.state, again.error, again.losses) == (JobState.QUEUED, None, 0)
        assert again.finished_at is None
    assert kinds(taken.job_id).count("retried") == 1
    assert len(place()) == 1


def test_the_time_limit_counts_anew_after_a_retry() -> None:
    taken = running()
    failed = end(taken.job_id, taken.fence, Outcome.FAILED, error=WorkerLostError("late").record())
    assert failed.gpu_seconds > 0
    retry(taken.job_id)
    assert len(place()) == 1
    again = records.claimed(taken.job_id, Stage.TRAIN)
    assert again.gpu_seconds_so_far == 0
    assert records.job(taken.job_id).gpu_seconds == failed.gpu_seconds


def test_retry_of_a_job_that_failed_in_preparation_prepares_again() -> None:
    job_id = submit()
    records.place_preparation()
    taken = records.claimed(job_id, Stage.PREPROCESS)
    end(job_id, taken.fence, Outcome.FAILED, error=WorkerLostError("bad rows").record())
    assert retry(job_id).state == JobState.PENDING
    assert records.place_preparation() == 1


def test_only_a_failed_job_is_retried() -> None:
    job_id = submit()
    stop(job_id, StopReason.PAUSE)
    with pytest.raises(StateError):
        retry(job_id)
    stop(job_id, StopReason.CANCEL)
    with pytest.raises(StateError):
        retry(job_id)
    with pytest.raises(NotFoundError):
        retry("ftjob-nothing")

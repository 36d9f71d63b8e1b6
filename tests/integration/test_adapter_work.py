"""Exports and chats as rows: where they queue, who may take them, what they need, what goes."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from models.errors import InputError, StateError
from models.queries import adapter_work, chats, history, jobs, products, rollups
from models.queries.fine_tuned import forget_model
from models.queries.pool import read_pool
from models.queries.retention import find_artifacts, needed_artifacts
from models.queries.retention_rules import rules_of_tenants, set_rules
from models.queries.waiting import why_waiting
from models.session import transaction
from models.states import JobState, Outcome, Stage, StopReason
from models.tables import TenantDay
from tests import adapter_work as work
from tests import records


@pytest.fixture(autouse=True)
def _empty(database: str) -> None:  # noqa: ARG001 (it has to be there)
    records.clear()


def test_an_export_waits_for_a_gpu_at_once_and_is_the_owners() -> None:
    source = work.trained()
    job = records.job(work.export(source))
    assert (job.state, job.stage, job.purpose) == ("queued", "export", "export")
    assert (job.source_job, job.tenant.name, job.user_name) == (source, "default", "ada")
    assert job.work is not None
    assert job.work["url"] == "/adapter"
    assert job.spec["evaluate"] is False
    (placed,) = records.place()
    assert (placed.job_id, placed.stage) == (job.id, Stage.EXPORT)
    claim = records.claimed(job.id, Stage.EXPORT)
    assert claim.work == job.work
    with transaction() as session:
        adapter_work.register_export(
            session,
            job.id,
            claim.fence,
            url="/export",
            size_bytes=7,
            digest="d",
            report={"format": "merged", "said": "equal"},
        )
    ended = records.end(job.id, claim.fence, Outcome.COMPLETED)
    assert (ended.state, ended.adapter_url) == (JobState.COMPLETED, None)
    with transaction() as session:
        assert [one.kind for one in products.artifacts_of(session, job.id)] == ["export"]
        told = history.events_of(session, source)[-1]
    assert told.message == (f"exported as merged, loaded again and compared: equal (job {job.id})")


def test_a_whole_model_has_no_adapter_to_export() -> None:
    source = work.trained("model", method="full")
    with pytest.raises(InputError, match="method full"):
        work.export(source, "adapter")
    work_asked = records.job(work.export(source, "merged")).work
    assert work_asked is not None
    assert work_asked["kind"] == "model"


def test_a_worker_that_cannot_is_given_none_and_the_wait_is_explained() -> None:
    source = work.trained()
    with transaction() as session:
        session.execute(text("UPDATE gpus SET versions = '{}'"))  # as an earlier version left it
    export = work.export(source)
    assert records.place() == []
    with transaction() as session:
        why = why_waiting(session, export)
    assert (why.reason, "earlier version" in why.sentence) == ("no_such_gpu", True)
    other = records.queued()
    assert [one.job_id for one in records.place()] == [other]  # trainings are not held up


def test_an_earlier_dispatcher_leaves_them_alone() -> None:
    """It looks for what a job needs among the GPU's labels alone."""
    work.export(work.trained())
    with transaction() as session:
        fits = session.scalar(
            text(
                "SELECT count(*) FROM gpus JOIN gpu_needs ON gpus.labels @> gpu_needs.labels"
                " JOIN lanes ON lanes.need_id = gpu_needs.id"
                " JOIN jobs ON jobs.lane_id = lanes.id WHERE jobs.purpose = 'export'"
            )
        )
    assert fits == 0


def test_a_chat_that_is_interrupted_ends_for_good() -> None:
    source = work.trained()
    for outcome, state in (
        (Outcome.DRAINED, JobState.CANCELLED),
        (Outcome.PREEMPTED, JobState.CANCELLED),
        (Outcome.LOST, JobState.FAILED),
    ):
        chat = work.chat(source)
        records.place()
        claim = records.claimed(chat, Stage.GENERATE)
        job = records.end(chat, claim.fence, outcome, reason="it went away")
        assert job.state is state
        records.add_gpu()
    assert job.error is not None
    assert job.error["message"] == "the chat was cut off: it went away"
    with transaction() as session, pytest.raises(StateError, match="nobody sits"):
        jobs.retry_job(session, chat)


def test_turns_go_in_answers_come_out_and_nothing_is_kept_for_long() -> None:
    chat = work.chat(work.trained())
    assert work.ask(chat, "one") == 1
    assert work.ask(chat, "two", "base") == 2
    records.place()
    claim = records.claimed(chat, Stage.GENERATE)
    with transaction() as session:
        found = chats.waiting(session, chat, 0)
        assert found.next == chats.Turn(1, "tuned", "one")
        assert (found.closed, found.unseen_seconds < 60) == (False, True)
        assert chats.waiting(session, chat, 2).next is None
        chats.write_answer(session, chat, claim.fence, 1, "an ans", tokens=2, whole=False)
    assert (work.turn(chat).answer, work.turn(chat).answered_at) == ("an ans", None)
    with transaction() as session:
        chats.write_answer(session, chat, claim.fence, 1, "an answer", tokens=3, whole=True)
        chats.close(session, chat)
    assert work.turn(chat).answered_at is not None
    with transaction() as session:
        assert chats.waiting(session, chat, 2).closed
    records.end(chat, claim.fence, Outcome.COMPLETED)
    with pytest.raises(StateError, match="is over"):
        work.ask(chat, "three")
    with transaction() as session:
        assert chats.delete_turns(session, 3600, 10) == 0
        assert chats.delete_turns(session, 0, 10) == 2


def test_a_paused_or_cancelled_export_is_a_job_like_any() -> None:
    export = work.export(work.trained())
    with transaction() as session:
        jobs.request_stop(session, export, StopReason.PAUSE)
        assert jobs.resume_job(session, export).state == JobState.QUEUED
        jobs.request_stop(session, export, StopReason.CANCEL)
    assert records.state(export) is JobState.CANCELLED


def test_what_is_to_be_exported_is_not_swept() -> None:
    source = work.trained()
    with transaction() as session:
        set_rules(session, "default", {"adapters": {"keep": 0}})

    def swept() -> int:
        with transaction() as session:
            return len(find_artifacts(session, rules_of_tenants(session)))

    assert swept() == 1
    export = work.export(source)
    assert swept() == 0
    with transaction() as session:
        jobs.request_stop(session, export, StopReason.CANCEL)
    assert swept() == 1


def test_a_failed_export_keeps_its_adapter_for_a_while_and_from_no_owner() -> None:
    source = work.trained()
    export = work.export(source)
    assert export in [one.job_id for one in records.place()]
    claim = records.claimed(export, Stage.EXPORT)
    with transaction() as session, pytest.raises(StateError, match="something needs"):
        forget_model(session, jobs.get_job(session, source), "ada")
    records.end(export, claim.fence, Outcome.FAILED, error={"code": "x", "message": "bad"})
    needed = text(f"SELECT count(*) FROM ({needed_artifacts()}) AS needed")  # noqa: S608
    with transaction() as session:
        assert session.scalars(needed).one() == 1
        session.execute(text("UPDATE jobs SET finished_at = finished_at - interval '31 days'"))
        assert session.scalars(needed).one() == 0
        session.execute(text("UPDATE jobs SET finished_at = finished_at + interval '31 days'"))
        assert forget_model(session, jobs.get_job(session, source), "ada") == ["/adapter"]


def test_they_are_no_trainings_in_counts_and_forecasts() -> None:
    source = work.trained()
    export = work.export(source)
    records.place()
    claim = records.claimed(export, Stage.EXPORT)
    waiting = work.export(source)
    training = records.queued()
    with transaction() as session:
        pool = read_pool(session)
        seconds = {w.id: w.work.seconds for lane in pool.play.lanes for w in lane.waiters}
    assert seconds[waiting] == 120  # no export has finished
    assert seconds[training] < 60  # as long as the training did, whatever exports take
    records.end(export, claim.fence, Outcome.COMPLETED)
    with transaction() as session:
        pool = read_pool(session)
        seconds = {w.id: w.work.seconds for lane in pool.play.lanes for w in lane.waiters}
        assert seconds[waiting] < 60
        rollups.count_days(session)
        (day,) = session.query(TenantDay).all()
    assert day.jobs_completed == 1  # the training


def test_last_is_the_last_training() -> None:
    source = work.trained()
    work.export(source)
    with transaction() as session:
        assert jobs.resolve_job_id(session, "last") == source
        assert [one.id for one in jobs.list_jobs(session)][1] == source

"""`import celora` on a real database: submit, read, change, list."""

from __future__ import annotations

from pathlib import Path

import pytest

import celora
from models.errors import InputError, NotFoundError, SpecError, StateError, UnavailableError
from models.states import Outcome, Stage
from tests import records
from tests.environment import variables

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def submit(**fields: object) -> celora.Job:
    return celora.submit(**({"base_model": "org/base", "dataset": "org/rows"} | fields))  # type: ignore[arg-type]  # each test gives what JobSpec takes


def test_a_submitted_job_is_what_was_asked() -> None:
    job = celora.submit(
        base_model="org/base",
        dataset="org/rows",
        method="qlora",
        rank=8,
        columns={"prompt": "question"},
        tenant="physics",
        user="ada",
    )
    assert job == celora.get(job.id)
    assert (job.tenant, job.user, job.state, job.stage) == (
        "physics",
        "ada",
        "pending",
        "preprocess",
    )
    assert job.spec == celora.JobSpec(
        base_model="org/base",
        dataset="org/rows",
        method="qlora",
        rank=8,
        columns={"prompt": "question"},
    )
    assert not job.finished


def test_keywords_win_over_a_spec() -> None:
    spec = celora.JobSpec(base_model="org/base", dataset="org/rows", rank=8, seed=7)
    job = celora.submit(spec, rank=4)
    assert (job.spec.rank, job.spec.seed) == (4, 7)


def test_a_wrong_field_is_named_and_nothing_is_stored() -> None:
    with pytest.raises(SpecError) as caught:
        submit(rank=0)
    assert caught.value.where == "rank"
    with pytest.raises(SpecError, match="nonsense"):
        submit(nonsense=1)
    assert celora.jobs() == []


def test_relative_paths_are_stored_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit(dataset="rows.jsonl").spec.dataset == str(tmp_path / "rows.jsonl")


def test_a_repeated_key_returns_the_first_job() -> None:
    first = celora.submit(base_model="a/b", dataset="c/d", idempotency_key="k")
    again = celora.submit(base_model="x/y", dataset="c/d", idempotency_key="k")
    assert again == first


def test_scripted_trainers_need_a_setting() -> None:
    with pytest.raises(SpecError, match="not allowed"):
        submit(base_model="scripted:?steps=3")
    with variables(CELORA_ALLOW_SCRIPTED="true"):
        assert submit(base_model="scripted:?steps=3").spec.scripted


def test_a_job_is_found_by_id_beginning_and_last() -> None:
    first, second = submit(), submit()
    assert celora.get("last").id == second.id
    assert celora.get(first).id == first.id
    assert celora.get(first.id[:-3]).id == first.id
    assert celora.get(first.id.removeprefix("ftjob-")[:12]).id == first.id
    with pytest.raises(InputError, match="several"):
        celora.get("ftjob-")
    with pytest.raises(NotFoundError):
        celora.get("ftjob-nosuchjob")


def test_jobs_come_newest_first_in_pages_that_stay_put() -> None:
    made = [submit(name=f"job {number}").id for number in range(5)][::-1]
    page = celora.jobs(limit=2)
    assert [job.id for job in page] == made[:2]
    submit(name="one more")
    assert [job.id for job in celora.jobs(limit=2, after=page[-1])] == made[2:4]


def test_jobs_are_filtered() -> None:
    mine = celora.submit(base_model="a/b", dataset="c/d", tenant="mine")
    cancelled = celora.cancel(celora.submit(base_model="a/b", dataset="c/d", tenant="other"))
    assert celora.jobs(tenant="mine") == [mine]
    assert celora.jobs(state="cancelled") == [cancelled]
    assert {job.id for job in celora.jobs(state=["pending", "cancelled"])} == {
        mine.id,
        cancelled.id,
    }
    with pytest.raises(InputError, match="sleeping"):
        celora.jobs(state="sleeping")


def test_the_states_a_person_can_bring_about() -> None:
    job = submit()
    assert celora.pause(job).state == "paused"
    assert celora.resume(job).state == "pending"
    assert celora.cancel(job).state == "cancelled"
    assert celora.cancel(job).state == "cancelled"
    with pytest.raises(StateError):
        celora.resume(job)
    with pytest.raises(StateError):
        celora.retry(job)
    with pytest.raises(StateError):
        celora.pause(job)


def test_a_failed_job_shows_its_error_and_can_be_retried() -> None:
    claim = records.running()
    error = {"code": "out_of_memory", "message": "too big", "where": None, "remedy": "less"}
    records.end(claim.job_id, claim.fence, Outcome.FAILED, error=error)
    job = celora.get(claim.job_id)
    assert (job.state, job.finished, job.error) == ("failed", True, error)
    again = celora.retry(job)
    assert (again.state, again.stage, again.error) == ("queued", Stage.TRAIN, None)


def test_why() -> None:
    job = submit()
    assert celora.why(job).reason == "to_prepare"
    queued = records.queued()
    assert celora.why(queued).reason == "no_worker"


def test_events_and_metrics_are_read_in_order() -> None:
    from models.queries import history
    from models.session import transaction

    claim = records.running()
    with transaction() as session:
        history.record_metrics(
            session,
            claim.job_id,
            claim.fence,
            Stage.TRAIN,
            [("train_loss", 2, 0.5), ("train_loss", 1, 0.7), ("grad_norm", 1, 9.0)],
        )
    assert celora.metrics(claim.job_id, "train_loss") == [
        celora.Metric("train", "train_loss", 1, 0.7),
        celora.Metric("train", "train_loss", 2, 0.5),
    ]
    assert len(celora.metrics(claim.job_id)) == 3
    events = celora.events(claim.job_id)
    assert next(event.kind for event in events) == "submitted"
    assert celora.events(claim.job_id, after=events[1].id) == events[2:]


def test_without_a_database_the_error_says_what_to_do() -> None:
    with (
        variables(CELORA_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:9/none"),
        pytest.raises(UnavailableError) as caught,
    ):
        celora.jobs()
    assert "celora doctor" in str(caught.value)

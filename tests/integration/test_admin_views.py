"""Schema admin: every column explained, figures that are right, and a reader who sees no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from celora import record
from docs.cookbook import PAGE, questions
from models.errors import InputError, NotFoundError
from models.queries import attempts, history, jobs, products, rollups, samples
from models.queries.roles import grant_reader
from models.session import transaction
from models.spec import Method
from models.states import Outcome, Stage
from tests import records
from tests.reader import reader as make_reader
from tests.records import add_gpu, claimed, end, place, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")

VIEWS = {
    "jobs",
    "queue",
    "gpus",
    "tenant_usage",
    "wait_times",
    "failures",
    "training_curves",
    "evaluations",
    "adapters",
    "job_times",
    "gpu_samples",
    "deliveries",
}


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()
    with transaction() as session:
        for table in ("gpu_prices", "gpu_samples"):
            session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 (two names of our own)


def view(name: str, **where: Any) -> list[dict[str, Any]]:
    condition = " AND ".join(f"{column} = :{column}" for column in where) or "true"
    with transaction() as session:
        rows = session.execute(
            text(f"SELECT * FROM admin.{name} WHERE {condition}"),  # noqa: S608 (a test's names)
            where,
        )
        return [dict(row) for row in rows.mappings()]


def count() -> None:
    with transaction() as session:
        rollups.set_costs(session)
    with transaction() as session:
        assert rollups.count_days(session)


def finish(
    tenant: str,
    *,
    hours: float,
    outcome: Outcome = Outcome.COMPLETED,
    where: str = "step 3",
    **fields: Any,
) -> str:
    """A job that held GPU 0 for so long."""
    job_id = queued(tenant, evaluate=False, **fields)
    (placed,) = place()
    assert placed.job_id == job_id
    taken = claimed(job_id, Stage.TRAIN)
    with transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET claimed_at = claimed_at - make_interval(secs => :seconds)"
                " WHERE id = :id"
            ),
            {"seconds": hours * 3600, "id": taken.attempt_id},
        )
    error = {"code": "out_of_memory", "message": "no room", "where": where, "remedy": "less"}
    end(job_id, taken.fence, outcome, error=error if outcome is Outcome.FAILED else None)
    return job_id


def test_every_view_is_there_and_every_column_is_explained() -> None:
    with transaction() as session:
        found = session.execute(
            text(
                "SELECT table_name, column_name, col_description("
                " format('admin.%I', table_name)::regclass, ordinal_position) AS comment"
                " FROM information_schema.columns WHERE table_schema = 'admin'"
            )
        ).all()
    assert {row.table_name for row in found} >= VIEWS
    assert [row for row in found if not row.comment] == []


def test_comments_name_every_method() -> None:
    with transaction() as session:
        told = session.scalars(
            text(
                "SELECT col_description(format('admin.%I', table_name)::regclass, ordinal_position)"
                " FROM information_schema.columns"
                " WHERE table_schema = 'admin' AND column_name = 'method'"
            )
        ).all()
    assert len(told) >= 4
    for comment in told:
        assert all(method in comment for method in get_args(Method)), comment


def test_use_and_cost_by_day_and_the_share_of_each_tenant() -> None:
    add_gpu()
    with transaction() as session:
        rollups.set_price(session, "CPU", 2.0)
    job_id = finish("a", hours=3)
    finish("b", hours=1, outcome=Outcome.FAILED)
    count()
    rows = {row["tenant"]: row for row in view("tenant_usage")}
    assert rows["a"]["gpu_hours"] == pytest.approx(3, rel=0.01)
    assert rows["a"]["cost"] == pytest.approx(6, rel=0.01)
    assert rows["a"]["share"] == pytest.approx(0.75, rel=0.01)
    assert (rows["a"]["jobs_completed"], rows["b"]["jobs_failed"]) == (1, 1)
    assert view("jobs", job=job_id)[0]["cost"] == pytest.approx(6, rel=0.01)
    count()  # counted anew, not added
    assert {row["tenant"]: row for row in view("tenant_usage")}["a"]["jobs_completed"] == 1


def test_a_cost_stays_when_the_price_changes_and_no_price_is_no_cost() -> None:
    add_gpu()
    free = finish("a", hours=1)
    count()
    assert view("jobs", job=free)[0]["cost"] is None
    with transaction() as session:
        rollups.set_price(session, "cpu", 1.0)
        rollups.set_price(session, "cpu (1 thread)", 3.0)  # the longest name counts
    paid = finish("a", hours=1)
    count()
    assert view("jobs", job=paid)[0]["cost"] == pytest.approx(3, rel=0.01)
    with transaction() as session:
        rollups.set_price(session, "cpu (1 thread)", None)
    count()
    assert view("jobs", job=paid)[0]["cost"] == pytest.approx(3, rel=0.01)
    assert view("gpus")[0]["price_per_hour"] == 1.0


def test_a_job_that_is_run_again_costs_all_its_attempts() -> None:
    add_gpu()
    with transaction() as session:
        rollups.set_price(session, "cpu", 2.0)
    job_id = finish("a", hours=1, outcome=Outcome.FAILED)
    count()
    assert view("jobs", job=job_id)[0]["cost"] == pytest.approx(2, rel=0.01)
    with transaction() as session:
        jobs.retry_job(session, job_id)
    assert view("jobs", job=job_id)[0]["cost"] is None  # it has not ended
    place()
    taken = claimed(job_id, Stage.TRAIN)
    _age(taken.attempt_id, 2 * 3600)
    end(job_id, taken.fence, Outcome.COMPLETED)
    count()
    assert view("jobs", job=job_id)[0]["cost"] == pytest.approx(6, rel=0.01)


@pytest.mark.parametrize("price", [-1.0, float("inf"), float("nan")])
def test_impossible_prices(price: float) -> None:
    with pytest.raises(InputError), transaction() as session:
        rollups.set_price(session, "h100", price)


def test_a_price_that_is_not_there_cannot_be_forgotten() -> None:
    with pytest.raises(NotFoundError), transaction() as session:
        rollups.set_price(session, "h100", None)


def test_waits_are_counted_within_their_error() -> None:
    add_gpu()
    waits = [1, 5, 10, 20, 40, 80, 160, 320, 640, 1280]
    for seconds in waits:
        job_id = finish("a", hours=0.01)
        with transaction() as session:
            session.execute(
                text(
                    "UPDATE jobs SET queued_at = started_at - make_interval(secs => :seconds)"
                    " WHERE id = :id"
                ),
                {"seconds": seconds, "id": job_id},
            )
    count()
    (row,) = view("wait_times")
    assert (row["tenant"], row["priority"], row["jobs"]) == ("a", 0, 10)
    assert row["p50_seconds"] == pytest.approx(40, rel=0.06)
    assert row["p95_seconds"] == pytest.approx(1280, rel=0.06)


def test_failures_are_grouped_with_the_newest_example() -> None:
    add_gpu()
    finish("a", hours=0.1, outcome=Outcome.FAILED)
    newest = finish("b", hours=0.1, outcome=Outcome.FAILED, where="step 7")
    (row,) = view("failures")
    assert (row["code"], row["place"], row["jobs"], row["tenants"]) == (
        "out_of_memory",
        "step 7",
        2,
        2,
    )
    assert (row["example"], row["example_job"]) == ("no room", newest)


def test_gpus_with_what_they_do() -> None:
    gpu_id = add_gpu()
    assert view("gpus")[0]["state"] == "free"
    with transaction() as session:
        for percent in (10.0, 55.0):
            samples.record_sample(
                session,
                gpu_id,
                utilisation_percent=percent,
                memory_used_bytes=7,
                temperature_celsius=60.0,
                power_watts=None,
            )
    job_id = queued("a")
    place()
    assert view("gpus")[0]["state"] == "placed"
    claimed(job_id, Stage.TRAIN)
    (row,) = view("gpus")
    assert (row["state"], row["job"], row["tenant"]) == ("busy", job_id, "a")
    assert (row["utilisation_percent"], row["temperature_celsius"]) == (55.0, 60.0)
    with transaction() as session:
        session.execute(text("UPDATE gpus SET heartbeat_at = heartbeat_at - interval '1 minute'"))
    assert view("gpus")[0]["state"] == "stale"


def test_a_curve_has_a_row_a_step() -> None:
    taken = records.running()
    with transaction() as session:
        history.record_metrics(
            session,
            taken.job_id,
            taken.fence,
            Stage.TRAIN,
            [("train_loss", 1, 2.5), ("grad_norm", 1, 0.5), ("train_loss", 2, 2.0)],
        )
    rows = view("training_curves", job=taken.job_id)
    assert [(row["step"], row["train_loss"], row["grad_norm"]) for row in rows] == [
        (1, 2.5, 0.5),
        (2, 2.0, None),
    ]


def _age(attempt_id: int, seconds: float) -> None:
    """As if the attempt's present stage had begun that long ago."""
    with transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET stage_at = clock_timestamp() - make_interval(secs => :age),"
                " claimed_at = claimed_at - make_interval(secs => :age) WHERE id = :id"
            ),
            {"age": seconds, "id": attempt_id},
        )


def test_the_time_of_each_stage_is_added_up_over_attempts() -> None:
    add_gpu()
    job_id = records.submit("a")
    records.place_preparation()
    taken = claimed(job_id, Stage.PREPROCESS, worker_session="cpu")
    _age(taken.attempt_id, 5)
    end(job_id, taken.fence, Outcome.COMPLETED)
    for stage_seconds, outcome in ((100, Outcome.LOST), (1000, None)):
        place()
        taken = claimed(job_id, Stage.TRAIN)
        _age(taken.attempt_id, stage_seconds)
        if outcome is not None:
            end(job_id, taken.fence, outcome)
    with transaction() as session:
        history.record_metrics(
            session,
            job_id,
            taken.fence,
            Stage.TRAIN,
            [("train_loss", 3, 1.0)],
            progress=history.Progress(step=3, epoch=2.0, trained_tokens=600),
        )
        attempts.finish_stage(session, job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    claimed(job_id, Stage.EVALUATE)
    _age(taken.attempt_id, 50)
    end(job_id, taken.fence, Outcome.COMPLETED)
    (row,) = view("job_times", job=job_id)
    assert row["preprocess_seconds"] == pytest.approx(5, abs=1)
    assert row["train_seconds"] == pytest.approx(1100, abs=2)
    assert row["evaluate_seconds"] == pytest.approx(50, abs=1)
    assert row["seconds_per_epoch"] == pytest.approx(550, abs=1)
    assert (row["epochs"], row["trained_tokens"]) == (2.0, 600)
    times = {one.stage: one.worked_seconds for one in record.read(job_id).times.stages}
    assert times[Stage.EVALUATE] == pytest.approx(50, abs=1)


def test_a_stage_that_was_never_begun_took_no_time() -> None:
    taken = records.running(evaluate=True)
    with transaction() as session:
        attempts.finish_stage(session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE)
    end(taken.job_id, taken.fence, Outcome.DRAINED)
    (row,) = view("job_times", job=taken.job_id)
    assert row["train_seconds"] is not None
    assert row["evaluate_seconds"] is None


def test_samples_of_devices_over_time() -> None:
    gpu_id = add_gpu()
    for percent in (10.0, 55.0):
        with transaction() as session:
            samples.record_sample(
                session,
                gpu_id,
                utilisation_percent=percent,
                memory_used_bytes=7,
                temperature_celsius=None,
                power_watts=None,
            )
    rows = sorted(view("gpu_samples", host="host"), key=lambda row: row["sampled_at"])
    assert [(row["index"], row["utilisation_percent"]) for row in rows] == [(0, 10.0), (0, 55.0)]


def test_evaluations_side_by_side_and_the_best_of_a_data_set() -> None:
    add_gpu()
    for loss in (1.5, 1.0):
        job_id = queued("a")
        place()
        taken = claimed(job_id, Stage.TRAIN)
        for subject, value in (("base", 3.0), ("tuned", loss)):
            with transaction() as session:
                products.record_evaluation(
                    session,
                    job_id,
                    taken.fence,
                    subject=subject,
                    rows=10,
                    generated_rows=0,
                    loss=value,
                    perplexity=9.0,
                    token_accuracy=0.5,
                    seconds=1.0,
                )
        end(job_id, taken.fence, Outcome.FAILED)
    count()
    rows = view("evaluations")
    assert sorted((row["base_loss"], row["tuned_loss"], row["best"]) for row in rows) == [
        (3.0, 1.0, True),
        (3.0, 1.5, False),
    ]


@pytest.fixture
def reader(database: str) -> Iterator[str]:
    with make_reader(database) as address:
        yield address


def test_a_view_that_an_upgrade_adds_is_seen_too(reader: str) -> None:
    with transaction() as session:
        session.execute(text("CREATE VIEW admin.later AS SELECT 1 AS one"))
    with create_engine(reader, poolclass=NullPool).connect() as connection:
        assert connection.scalar(text("SELECT one FROM admin.later")) == 1
    with transaction() as session:
        session.execute(text("DROP VIEW admin.later"))


def test_a_reader_sees_the_views_and_nothing_else(reader: str) -> None:
    queued("a")
    with create_engine(reader, poolclass=NullPool).connect() as connection:
        for name in sorted(VIEWS):
            connection.execute(text(f"SELECT * FROM admin.{name} LIMIT 1"))  # noqa: S608
        assert connection.scalar(text("SELECT count(*) FROM admin.jobs")) == 1
    for statement in (
        "SELECT * FROM jobs",
        "SELECT * FROM public.tenants",
        "DELETE FROM events",
        "CREATE TABLE admin.mine (id int)",
    ):
        with (
            create_engine(reader, poolclass=NullPool).connect() as connection,
            pytest.raises(ProgrammingError, match="permission denied"),
        ):
            connection.execute(text(statement))


def test_a_readers_name_is_a_plain_one() -> None:
    with pytest.raises(InputError), transaction() as session:
        grant_reader(session, 'x"; DROP TABLE jobs; --')


def test_every_question_of_the_cookbook_can_be_asked() -> None:
    page = PAGE.read_text()
    asked = questions(page)
    assert len(asked) >= 15
    assert page.count("```text") == len(asked)  # each with its answer
    for question in asked:
        with transaction() as session:
            session.execute(text(question.rstrip().rstrip(";")))

"""Metrics, logs, events, products: what runs leave behind."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from models.queries import history, products
from models.queries.attempts import Claim
from models.queries.history import LogEntry, MetricRow, Progress
from models.queries.notify import listen
from models.queries.story import read_story
from models.session import transaction
from models.states import Outcome, Stage
from models.tables import Counter, Metric
from tests import records
from tests.records import claimed, end, job, place, running, submit

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def write(
    taken: Claim, points: list[tuple[str, int, float]], progress: Progress | None = None
) -> None:
    with transaction() as session:
        history.record_metrics(
            session, taken.job_id, taken.fence, Stage.TRAIN, points, progress=progress
        )


def read(job_id: str, names: list[str] | None = None) -> list[MetricRow]:
    with transaction() as session:
        return history.metrics_of(session, job_id, names)


def test_metrics_come_back_by_name_and_step() -> None:
    taken = running()
    write(taken, [("train_loss", 2, 1.5), ("train_loss", 1, 2.0), ("learning_rate", 1, 1e-4)])
    assert read(taken.job_id) == [
        ("train", "learning_rate", 1, 1e-4),
        ("train", "train_loss", 1, 2.0),
        ("train", "train_loss", 2, 1.5),
    ]
    assert [row.step for row in read(taken.job_id, ["train_loss"])] == [1, 2]
    assert read(taken.job_id, []) == []


def test_a_step_that_is_run_again_is_counted_once() -> None:
    taken = running()
    write(taken, [("train_loss", step, float(step)) for step in range(1, 6)])
    end(taken.job_id, taken.fence, Outcome.LOST)
    place()
    again = claimed(taken.job_id, Stage.TRAIN)
    write(again, [("train_loss", 4, 40.0), ("train_loss", 5, 49.0), ("train_loss", 5, 50.0)])
    assert [row.value for row in read(taken.job_id)] == [1.0, 2.0, 3.0, 40.0, 50.0]
    with transaction() as session:
        fences = session.scalars(select(Metric.fence).order_by(Metric.step)).all()
    assert fences == [taken.fence] * 3 + [again.fence] * 2


def test_a_step_is_told_where_the_trainer_or_the_held_out_rows_told_it() -> None:
    taken = running()
    write(taken, [("train_loss", step, 1.0) for step in (1, 2, 3)])
    write(taken, [("learning_rate", 1, 1e-4), ("learning_rate", 3, 1e-4)])
    write(taken, [("eval_loss", 2, 2.5), ("eval_loss", 3, 2.0)])
    with transaction() as session:
        told = read_story(session, taken.job_id, limit=20)
    steps = {entry.mark.number: entry.data for entry in told if entry.mark.kind == "m"}
    assert steps[2] == {"train_loss": 1.0, "eval_loss": 2.5}
    assert sorted(entry.mark.number for entry in told if entry.mark.kind == "m") == [1, 2, 3]


def test_a_loss_that_is_not_a_number_is_kept_as_such() -> None:
    taken = running()
    write(taken, [("train_loss", 1, math.nan), ("train_loss", 2, math.inf)])
    assert math.isnan(read(taken.job_id)[0].value)
    assert math.isinf(read(taken.job_id)[1].value)


def test_progress_changes_only_what_it_names() -> None:
    taken = running()
    write(taken, [], Progress(step=2, total_steps=9, epoch=0.5, train_loss=2.0, trained_tokens=64))
    write(taken, [], Progress(step=3, tokens_per_second=100.0))
    found = job(taken.job_id)
    assert (found.step, found.total_steps, found.epoch, found.train_loss) == (3, 9, 0.5, 2.0)
    assert (found.tokens_per_second, found.trained_tokens) == (100.0, 64)
    assert found.progress_at is not None


def test_log_lines_keep_their_order_and_what_postgres_cannot_hold_is_replaced() -> None:
    taken = running()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with transaction() as session:
        history.record_logs(session, taken.job_id, taken.fence, Stage.TRAIN, [])
        history.record_logs(
            session,
            taken.job_id,
            taken.fence,
            Stage.TRAIN,
            [("info", "nul \0"), LogEntry("error", "half \udc80 pair", at), ("info", "ü" * 9)],
        )
        lines = history.logs_of(session, taken.job_id)
        rest = history.logs_of(session, taken.job_id, after_id=lines[0].id, limit=1)
    assert [one.line for one in lines] == ["nul \ufffd", "half ? pair", "ü" * 9]
    assert (lines[1].level, lines[1].logged_at, lines[1].stage) == ("error", at, "train")
    assert [one.id for one in rest] == [lines[1].id]


def test_events_follow_each_other_and_are_told_to_watchers() -> None:
    job_id = submit()
    with listen("celora_job") as watcher:
        with transaction() as session:
            history.add_event(
                session, job_id, "note", "half \ud800", level="warn", data={"x": "\0", "y": 1e400}
            )
        assert watcher.wait(5) == [job_id]
    with transaction() as session:
        first, second = history.events_of(session, job_id)
        assert history.events_of(session, job_id, after_id=first.id)[0].id == second.id
    assert (second.kind, second.level, second.message) == ("note", "warn", "half ?")
    assert second.data == {"x": "\ufffd", "y": None}


def test_activity_is_said_until_the_attempt_ends() -> None:
    taken = running()
    with transaction() as session:
        history.set_activity(session, taken.job_id, taken.fence, "loading the base model")
    assert job(taken.job_id).activity == "loading the base model"
    assert end(taken.job_id, taken.fence, Outcome.DRAINED).activity is None


def test_counters_add_up() -> None:
    with transaction() as session:
        history.count(session, "tickets_dropped")
        history.count(session, "tickets_dropped", by=2)
        assert session.scalars(select(Counter.value)).all() == [3]


def test_checkpoints_beyond_the_newest_are_marked_before_their_files_go() -> None:
    taken = running(keep_checkpoints=2)
    dropped = []
    for step in (10, 20, 20, 30):
        with transaction() as session:
            dropped += products.register_checkpoint(
                session,
                taken.job_id,
                taken.fence,
                step=step,
                url=f"/c/{step}",
                size_bytes=1,
                trained_tokens=step,
                metrics={"eval_loss": 1.0},
            )
    assert [(one.step, one.url) for one in dropped] == [(10, "/c/10")]
    assert dropped[0].deleted_at is not None
    with transaction() as session:
        kept = products.checkpoints_of(session, taken.job_id)
        newest = products.newest_checkpoint(session, taken.job_id)
    assert [one.step for one in kept] == [30, 20]
    assert newest is not None
    assert newest.step == 30


def test_the_job_points_at_its_adapter() -> None:
    taken = running()
    with transaction() as session:
        products.register_artifact(
            session, taken.job_id, taken.fence, kind="adapter", url="/a", size_bytes=5, digest="d"
        )
        products.register_artifact(
            session, taken.job_id, taken.fence, kind="prepared", url="/p", size_bytes=5
        )
        kinds = [one.kind for one in products.artifacts_of(session, taken.job_id)]
    assert job(taken.job_id).adapter_url == "/a"
    assert kinds == ["adapter", "prepared"]


def evaluate(taken: Claim, subject: str, loss: float, cache_key: str | None = None) -> None:
    with transaction() as session:
        products.record_evaluation(
            session,
            taken.job_id,
            taken.fence,
            subject=subject,
            rows=4,
            generated_rows=1,
            loss=loss,
            perplexity=math.inf,
            token_accuracy=0.5,
            exact_match=0.25,
            seconds=0.1,
            answers=["a\0b"],
            cache_key=cache_key,
        )


def test_a_base_evaluation_serves_every_later_job_with_its_key() -> None:
    taken = running()
    with transaction() as session:
        assert products.cached_base_evaluation(session, "k") is None
    evaluate(taken, "base", 3.0, cache_key="k")
    evaluate(taken, "tuned", 1.0)
    evaluate(taken, "tuned", 0.5)  # a second try replaces it
    with transaction() as session:
        cached = products.cached_base_evaluation(session, "k")
        both = products.evaluations_of(session, taken.job_id)
    assert cached is not None
    assert (cached.loss, cached.answers) == (3.0, ["a\ufffdb"])
    assert {subject: one.loss for subject, one in both.items()} == {"base": 3.0, "tuned": 0.5}


def test_samples_keep_their_order_and_a_second_try_replaces_them() -> None:
    taken = running()
    for answer in ("one", "two"):
        with transaction() as session:
            products.record_samples(
                session,
                taken.job_id,
                taken.fence,
                [
                    {"prompt": p, "expected": "e", "base_answer": None, "tuned_answer": answer}
                    for p in ("p0", "p1")
                ],
            )
    with transaction() as session:
        kept = products.samples_of(session, taken.job_id)
    assert [(one.prompt, one.tuned_answer) for one in kept] == [("p0", "two"), ("p1", "two")]

"""The fence: a stale writer writes nothing, and writes and the end of an attempt take turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from models.errors import StaleFenceError
from models.queries import attempts, history, products
from models.session import transaction
from models.states import Outcome, Stage
from models.tables import Base
from tests import records
from tests.records import claimed, end, place, running

pytestmark = pytest.mark.usefixtures("database", "_empty")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def _metrics(session: Session, job_id: str, fence: int) -> None:
    history.record_metrics(session, job_id, fence, Stage.TRAIN, [("train_loss", 1, 2.5)])


def _progress(session: Session, job_id: str, fence: int) -> None:
    progress = history.Progress(step=1)
    history.record_metrics(session, job_id, fence, Stage.TRAIN, [], progress=progress)


def _logs(session: Session, job_id: str, fence: int) -> None:
    history.record_logs(session, job_id, fence, Stage.TRAIN, [("info", "hello")])


def _activity(session: Session, job_id: str, fence: int) -> None:
    history.set_activity(session, job_id, fence, "loading")


def _trainer(session: Session, job_id: str, fence: int) -> None:
    attempts.record_trainer(session, job_id, fence, pid=1, warm=True)


def _checkpoint(session: Session, job_id: str, fence: int) -> None:
    products.register_checkpoint(
        session, job_id, fence, step=9, url="/c", size_bytes=1, trained_tokens=1, metrics={}
    )


def _artifact(session: Session, job_id: str, fence: int) -> None:
    products.register_artifact(session, job_id, fence, kind="adapter", url="/a", size_bytes=1)


def _prepared(session: Session, job_id: str, fence: int) -> None:
    products.set_prepared(
        session, job_id, fence, prepared_url="/p", data_digest="d", base_revision="r", verdict={}
    )


def _evaluation(session: Session, job_id: str, fence: int) -> None:
    products.record_evaluation(
        session,
        job_id,
        fence,
        subject="tuned",
        rows=1,
        generated_rows=0,
        loss=1.0,
        perplexity=2.7,
        token_accuracy=0.5,
        seconds=0.1,
    )


def _samples(session: Session, job_id: str, fence: int) -> None:
    sample = {"prompt": "p", "expected": "e", "base_answer": "b", "tuned_answer": "t"}
    products.record_samples(session, job_id, fence, [sample])


def _finish(session: Session, job_id: str, fence: int) -> None:
    attempts.finish_stage(session, job_id, fence, Stage.TRAIN, Stage.EVALUATE)


def _end(session: Session, job_id: str, fence: int) -> None:
    attempts.end_attempt(session, job_id, fence, Outcome.COMPLETED, result={"loss": 1.0})


FENCED = [
    _metrics, _progress, _logs, _activity, _trainer, _checkpoint, _artifact, _prepared,
    _evaluation, _samples, _finish, _end,
]  # fmt: skip


@pytest.mark.parametrize("write", FENCED)
def test_a_stale_writer_writes_nothing(write: Callable[[Session, str, int], None]) -> None:
    taken = running()
    end(taken.job_id, taken.fence, Outcome.LOST)
    (again,) = place()
    claimed(taken.job_id, Stage.TRAIN)
    before = everything()
    for fence in (taken.fence, again.fence + 1):
        with pytest.raises(StaleFenceError), transaction() as session:
            write(session, taken.job_id, fence)
        # A caller that goes on after the refusal, and commits, has written nothing either.
        with transaction() as session, pytest.raises(StaleFenceError):
            write(session, taken.job_id, fence)
    assert everything() == before
    with transaction() as session:
        write(session, taken.job_id, again.fence)
    assert everything() != before


@pytest.mark.parametrize("write", FENCED)
def test_a_write_and_the_end_of_its_attempt_take_turns(
    write: Callable[[Session, str, int], None],
) -> None:
    """The end waits for the write, in the one order of locks: nobody meets a deadlock."""
    taken = running()
    with transaction() as writing:
        write(writing, taken.job_id, taken.fence)
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(end, taken.job_id, taken.fence, Outcome.LOST)
            records.until_blocked()
            writing.commit()
            if write is _end:
                with pytest.raises(StaleFenceError):
                    ending.result()
            else:
                ending.result()


@pytest.mark.parametrize("write", [one for one in FENCED if one is not _end])
def test_a_write_that_waited_for_the_end_is_stale(
    write: Callable[[Session, str, int], None],
) -> None:
    taken = running()

    def late() -> None:
        with transaction() as session:
            write(session, taken.job_id, taken.fence)

    with transaction() as ending:
        attempts.end_attempt(ending, taken.job_id, taken.fence, Outcome.LOST)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(late)
            records.until_blocked()
            ending.commit()
            with pytest.raises(StaleFenceError):
                writing.result()


def everything() -> dict[str, list[str]]:
    """All rows of all tables, as text."""
    with transaction() as session:
        return {
            table.name: sorted(
                session.scalars(text(f"SELECT t::text FROM {table.name} AS t"))  # noqa: S608 (our own tables)
            )
            for table in Base.metadata.sorted_tables
        }


def test_writes_of_one_transaction_meet_an_ending_attempt_in_any_order() -> None:
    """A batch of logs and metrics: none of its writes takes a lock before an earlier one's."""
    for first, second in itertools.permutations([_logs, _progress, _checkpoint], 2):
        records.clear()
        taken = running()
        with transaction() as writing:
            first(writing, taken.job_id, taken.fence)
            with ThreadPoolExecutor(1) as pool:
                ending = pool.submit(end, taken.job_id, taken.fence, Outcome.LOST)
                records.until_blocked()
                second(writing, taken.job_id, taken.fence)
                writing.commit()
                ending.result()

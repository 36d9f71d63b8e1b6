"""What the sweep deletes by the rules of a tenant, and what it never deletes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import select

from models import store
from models.errors import InputError
from models.queries import history, jobs, prepared, retention
from models.queries.retention_rules import rules_of_tenants
from models.retention import RetentionRules, parse_rules
from models.session import transaction
from models.states import Outcome, Stage, StopReason
from models.store import local_path
from models.tables import Checkpoint
from tasks.dispatcher import sweep as sweeping
from tasks.dispatcher.sweep import Swept
from tests import records, stored
from tests.environment import variables

KINDS = ["local", "file", "memory"]


@pytest.fixture(autouse=True)
def artifacts(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[str]:  # noqa: ARG001 (it has to be there)
    kind = getattr(request, "param", "local")
    with stored.artifacts(kind, tmp_path) as url:
        records.clear()
        yield url


def sweep() -> Swept:
    swept = sweeping.sweep()
    assert swept is not None
    return swept


def swept() -> dict[str, int]:
    return {kind: count for kind, count in sweep().counts.items() if kind != "orphans"}


def standing(job_id: str) -> list[int]:
    with transaction() as session:
        return sorted(
            session.scalars(
                select(Checkpoint.step).where(
                    Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None)
                )
            )
        )


@pytest.mark.parametrize("artifacts", KINDS, indirect=True)
def test_checkpoints_of_a_completed_job_go_after_a_week_and_its_adapter_stays() -> None:
    job_id = stored.trained()
    stored.age(6.9)
    assert swept() == {}
    assert standing(job_id) == [10, 20]
    stored.age(0.2)
    assert swept() == {"checkpoints": 2}
    assert standing(job_id) == []
    fence = records.job(job_id).fence
    assert stored.left() == {f"jobs/{job_id}/{fence}/adapter"}
    assert records.job(job_id).adapter_url is not None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_checkpoints_of_a_job_that_failed_or_was_cancelled_stay_for_a_month(
    outcome: Outcome,
) -> None:
    job_id = stored.trained(outcome=outcome, adapter=False)
    stored.age(29)
    assert swept() == {}
    stored.age(2)
    assert swept() == {"checkpoints": 2}
    assert standing(job_id) == []


@pytest.mark.parametrize("state", ["pending", "queued", "running", "paused"])
def test_what_an_unfinished_job_needs_is_never_deleted(state: str) -> None:
    job_id = stored.trained(outcome=Outcome.LOST, prepared="abc")
    stored.retention(
        "default",
        {
            kind: {"max_age_days": 0, "keep": 0, "max_bytes": 0}
            for kind in ("checkpoints", "prepared", "adapters", "logs")
        },
    )
    stored.sql("UPDATE jobs SET state = :state", state=state)
    stored.age(1000)
    before = stored.left()
    assert len(before) == 4
    assert swept() == {}
    assert stored.left() == before
    assert standing(job_id) == [10, 20]


def test_a_failed_job_loses_nothing_by_count_or_bytes_while_it_may_be_run_again() -> None:
    job_id = stored.trained(outcome=Outcome.FAILED, prepared="abc")
    stored.retention(
        "default",
        {
            "checkpoints": {"keep": 0, "max_bytes": 0},
            "prepared": {"keep": 0, "max_bytes": 0},
            "adapters": {"keep": 0, "max_bytes": 0},
        },
    )
    stored.age(10)
    assert swept() == {}
    with transaction() as session:
        jobs.retry_job(session, job_id)
    stored.age(100)
    assert swept() == {}


def test_a_retry_beside_the_sweep_keeps_its_checkpoints() -> None:
    """The retry holds the job's row when the sweep looks: the sweep passes it over."""
    job_id = stored.trained(outcome=Outcome.FAILED, adapter=False)
    stored.age(40)
    with transaction() as session:
        jobs.retry_job(session, job_id)
        assert swept() == {}
    assert swept() == {}
    assert standing(job_id) == [10, 20]


@pytest.mark.parametrize("fails_again", [False, True])
def test_a_retry_between_the_look_and_the_mark_keeps_everything(fails_again: bool) -> None:  # noqa: FBT001
    job_id = stored.trained(outcome=Outcome.FAILED, adapter=False)
    stored.trained(outcome=Outcome.FAILED, prepared="abc", steps=(), adapter=False)
    stored.age(40)
    with transaction() as session:
        rules = rules_of_tenants(session)
        found = [(kind, kind.find(session, rules)) for kind in retention.KINDS]
    assert [len(candidates) for _, candidates in found] == [2, 0, 1]
    stored.sql("UPDATE jobs SET state = 'queued', finished_at = NULL")
    if fails_again:
        stored.sql("UPDATE jobs SET state = 'failed', finished_at = clock_timestamp()")
    for kind, candidates in found:
        with transaction() as session:
            assert kind.mark(session, candidates) == []
    assert standing(job_id) == [10, 20]


def test_count_and_bytes_of_checkpoints() -> None:
    older, newer = (stored.trained(adapter=False, size_bytes=100) for _ in range(2))
    stored.retention("default", {"checkpoints": {"keep": 1}})
    assert swept() == {"checkpoints": 2}
    assert (standing(older), standing(newer)) == ([20], [20])
    stored.retention("default", {"checkpoints": {"max_bytes": 150}})
    assert swept() == {"checkpoints": 1}
    assert (standing(older), standing(newer)) == ([], [20])


def test_rules_are_a_tenants_own() -> None:
    strict, lenient = stored.trained("strict"), stored.trained("lenient")
    stored.retention("strict", {"adapters": {"keep": 0}, "checkpoints": {"max_age_days": 0}})
    assert swept() == {"adapters": 1, "checkpoints": 2}
    assert records.job(strict).adapter_url is None
    assert records.job(lenient).adapter_url is not None
    assert standing(lenient) == [10, 20]


def test_rules_that_cannot_be_read_are_the_defaults_and_are_told() -> None:
    stored.trained("wrong")
    stored.retention("wrong", {"checkpoints": {"max_age_days": "for ever"}})
    stored.age(8)
    done = sweep()
    assert done.counts["checkpoints"] == 2
    (problem,) = done.problems
    assert "tenant wrong" in problem
    assert "retention.checkpoints.max_age_days" in problem
    stored.retention("wrong", [1, 2])
    assert "defaults hold" in sweep().problems[0]


@pytest.mark.parametrize(
    "fields", [{"checkpoint": {}}, {"logs": {"days": 3}}, {"prepared": {"keep": -1}}, "x", None]
)
def test_wrong_rules_are_refused(fields: object) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        parse_rules(fields)
    assert parse_rules({}) == RetentionRules()


def test_the_adapter_that_a_waiting_job_starts_from_stays() -> None:
    first = stored.trained()
    stored.retention("default", {"adapters": {"keep": 0}})
    second = records.submit(after=first, start_from_adapter=True)
    assert "adapters" not in swept()
    with transaction() as session:
        jobs.request_stop(session, second, StopReason.CANCEL)
    assert swept()["adapters"] == 1
    assert records.job(first).adapter_url is None


@pytest.mark.parametrize("artifacts", KINDS, indirect=True)
def test_prepared_data_goes_a_month_after_its_last_use() -> None:
    first = stored.trained(prepared="abc", steps=(), adapter=False)
    stored.age(20)
    second = stored.trained(prepared="abc", steps=(), adapter=False)
    stored.age(20)
    assert swept() == {}  # the second job used it 20 days ago
    stored.age(11)
    assert swept() == {"prepared": 1}
    assert stored.left() == set()
    assert [records.job(one).prepared_url for one in (first, second)] == [None, None]
    assert records.job(first).data_digest == "abc"  # what it was trained on stays on record


def test_shared_prepared_data_goes_when_all_its_tenants_let_it_go() -> None:
    stored.trained("strict", prepared="abc", steps=(), adapter=False)
    stored.trained("lenient", prepared="abc", steps=(), adapter=False)
    stored.retention("strict", {"prepared": {"max_age_days": 2}})
    stored.retention("lenient", {"prepared": {"max_age_days": 5}})
    stored.age(3)
    assert swept() == {}
    stored.age(3)
    assert swept() == {"prepared": 1}


def test_prepared_data_that_is_just_being_taken_up_stays() -> None:
    """A preparation has found it, and its job does not point at it yet."""
    stored.trained(prepared="abc", steps=(), adapter=False)
    stored.age(50)
    with transaction() as session:
        place = prepared.find_place(session, "abc")
    assert place == prepared.Place(store.prepared_url("abc"), on_record=True)
    assert swept() == {}


def test_a_preparation_that_waits_for_the_sweep_makes_its_data_anew() -> None:
    """And the other way round: the sweep was first. The new place is not the one being deleted."""
    stored.trained(prepared="abc", steps=(), adapter=False)
    stored.age(50)
    assert swept() == {"prepared": 1}
    with transaction() as session:
        place = prepared.find_place(session, "abc")
    assert not place.on_record
    assert place.url.startswith(store.prepared_url("abc") + "-")
    with transaction() as session:
        assert prepared.register_prepared(session, "abc", place.url, 5) == place.url
        again = prepared.find_place(session, "abc")
    assert again == prepared.Place(place.url, on_record=True)


def test_the_first_of_two_equal_preparations_wins() -> None:
    first, second = (store.prepared_url("abc", again=True) for _ in range(2))
    with transaction() as session:
        assert prepared.register_prepared(session, "abc", first, 5) == first
        assert prepared.register_prepared(session, "abc", second, 5) == first


def test_a_store_that_was_moved_is_not_looked_for_at_its_old_place(tmp_path: Path) -> None:
    with transaction() as session:
        prepared.register_prepared(session, "abc", store.prepared_url("abc"), 5)
    with variables(CELORA_ARTIFACTS=str(tmp_path / "moved")), transaction() as session:
        place = prepared.find_place(session, "abc")
        assert not place.on_record
        assert place.url.startswith(str(tmp_path / "moved"))
        assert prepared.register_prepared(session, "abc", place.url, 5) == place.url


def test_a_failed_job_whose_data_went_prepares_it_anew() -> None:
    job_id = stored.trained(outcome=Outcome.FAILED, prepared="abc", adapter=False)
    stored.age(40)
    assert swept() == {"checkpoints": 2, "prepared": 1}
    with transaction() as session:
        again = jobs.retry_job(session, job_id)
    assert (again.state, again.stage, again.prepared_url) == ("pending", "preprocess", None)


def test_data_of_a_failed_job_stays_as_long_as_a_checkpoint_does() -> None:
    """Its run goes on from there: on the same data, or not at all."""
    stored.trained(outcome=Outcome.FAILED, prepared="abc", adapter=False)
    stored.retention("default", {"checkpoints": {"failed_max_age_days": None}})
    stored.age(400)
    assert swept() == {}


def test_log_lines_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "LOG_LINES_AT_ONCE", 3)
    old = stored.trained(steps=(), adapter=False)
    add_lines(old, 10)
    stored.age(91)
    new = stored.trained(steps=(), adapter=False)
    waits = stored.trained(steps=(), adapter=False, outcome=Outcome.LOST)
    add_lines(new, 4)
    add_lines(waits, 4)
    assert swept() == {"logs": 10}
    assert [lines(one) for one in (old, new, waits)] == [0, 4, 4]
    stored.retention("default", {"logs": {"max_bytes": 2}})
    assert swept() == {"logs": 4}
    assert lines(waits) == 4


def add_lines(job_id: str, count: int) -> None:
    stored.sql(
        "INSERT INTO log_lines (job_id, fence, stage, logged_at, level, line)"
        " SELECT :job_id, 1, 'train', now(), 'info', 'line' FROM generate_series(1, :count)",
        job_id=job_id,
        count=count,
    )


def lines(job_id: str) -> int:
    with transaction() as session:
        return len(history.logs_of(session, job_id))


@pytest.mark.parametrize("artifacts", KINDS, indirect=True)
def test_the_preview_is_what_the_sweep_then_does() -> None:
    stored.trained(prepared="abc")
    stored.trained(outcome=Outcome.LOST, prepared="def")
    stored.age(60)
    planned = sweeping.preview()
    assert planned.counts == {"checkpoints": 2, "prepared": 1}
    assert planned.size_bytes.total() == 300
    done = sweep()
    assert (done.counts, done.size_bytes) == (planned.counts, planned.size_bytes)
    assert stored.sql("SELECT value FROM counters WHERE name = 'swept_bytes'") == [(300,)]
    assert sweeping.preview().counts == {}


def test_one_sweep_at_a_time() -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        from models.queries.sweeping import sweeping as turn

        with turn() as ours:
            assert ours
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    assert sweeping.sweep() is None
    leave.set()
    thread.join()
    assert sweeping.sweep() is not None


class Slow(MemoryFileSystem):  # type: ignore[misc] # fsspec ships no types
    """A store that does something else before it deletes."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    before: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def rm(self, path: str, **options: Any) -> None:
        type(self).before()
        super().rm(path, **options)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[type[Slow]]:
    fsspec.register_implementation("slow", Slow, clobber=True)
    with variables(CELORA_ARTIFACTS=f"slow://bucket-{tmp_path.name}"):
        yield Slow
    Slow.before = staticmethod(lambda: None)


def test_a_sweep_holds_no_transaction_open_while_it_deletes(slow: type[Slow]) -> None:
    stored.trained()
    stored.age(8)
    calls, transactions = [], []

    def look() -> None:
        calls.append(1)
        transactions.extend(
            stored.sql(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
                " AND backend_type = 'client backend'"
            )
        )

    slow.before = staticmethod(look)
    assert sweep().counts["checkpoints"] == 2
    assert len(calls) == 2
    assert transactions == []


def test_rows_are_marked_before_files_go_and_what_is_left_goes_next_time(slow: type[Slow]) -> None:
    job_id = stored.trained(adapter=False)
    stored.age(8)

    def refuse() -> None:
        raise PermissionError("not today")

    slow.before = staticmethod(refuse)
    first = sweep()
    assert not first.counts
    assert "not today" in first.problems[0]
    assert standing(job_id) == []
    assert len(stored.left()) == 2
    slow.before = staticmethod(lambda: None)
    assert sweep().counts == {"orphans": 1}
    assert stored.left() == set()


@pytest.mark.parametrize("artifacts", KINDS, indirect=True)
def test_a_store_on_another_host_is_no_error(artifacts: str) -> None:
    stored.trained()
    stored.age(8)
    if store.is_local(artifacts):
        store.remove(artifacts)
        assert not local_path(artifacts).exists()
    done = sweep()
    assert done.counts["checkpoints"] == 2
    assert done.problems == []


def test_needed_artifacts_is_the_place_for_what_comes() -> None:
    job_id = stored.trained()
    assert stored.sql(retention.needed_artifacts()) == []
    stored.sql("UPDATE jobs SET state = 'queued' WHERE id = :id", id=job_id)
    assert len(stored.sql(retention.needed_artifacts())) == 1
    assert Stage(records.job(job_id).stage) is Stage.EVALUATE

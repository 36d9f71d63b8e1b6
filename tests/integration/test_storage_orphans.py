"""Files that belong to nothing on record go; whatever somebody may still write or need stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models import store
from models.states import Outcome
from tasks.dispatcher import sweep as sweeping
from tasks.dispatcher.sweep import Swept
from tests import records, stored
from tests.environment import variables


@pytest.fixture(params=["local", "file", "memory"], autouse=True)
def artifacts(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[str]:  # noqa: ARG001 (it has to be there)
    with stored.artifacts(request.param, tmp_path) as url:
        records.clear()
        yield url


def sweep() -> Swept:
    swept = sweeping.sweep()
    assert swept is not None
    return swept


def test_what_a_dead_attempt_left_goes_and_what_it_registered_stays() -> None:
    job_id = stored.trained(outcome=Outcome.LOST)
    attempt = store.attempt_url(job_id, records.job(job_id).fence)
    registered = stored.left()
    for left in ("checkpoints/step-30", "checkpoints/step-40.incoming", "model", "prepare"):
        stored.put(f"{attempt}/{left}")
    assert sweep().counts == {}  # it ended a moment ago
    stored.age(0.9)
    assert sweep().counts == {}
    stored.age(0.2)
    assert sweep().counts == {"orphans": 4}
    assert stored.left() == registered


def test_an_attempt_that_registered_nothing_goes_whole() -> None:
    job_id = stored.trained(outcome=Outcome.FAILED, steps=(), adapter=False)
    stored.put(store.checkpoint_url(job_id, records.job(job_id).fence, 5))
    stored.put(f"{store.attempt_url(job_id, records.job(job_id).fence)}/adapter.tmp")
    stored.age(2)
    done = sweep()
    assert (done.counts, done.size_bytes) == ({"orphans": 1}, {"orphans": 200})
    assert stored.left() <= {f"jobs/{job_id}"}  # a local store keeps the empty folder for now


def test_nothing_of_a_live_attempt_goes_however_old() -> None:
    claim = records.running()
    stored.put(store.checkpoint_url(claim.job_id, claim.fence, 5))
    stored.put(f"{store.attempt_url(claim.job_id, claim.fence)}/checkpoints/step-9.incoming")
    before = stored.left()
    stored.age(100)
    stored.age_store()
    assert sweep().counts == {}
    assert stored.left() == before


def test_files_of_jobs_that_are_gone_go_when_they_are_old() -> None:
    stored.put(store.checkpoint_url("ftjob-gone", 3, 5))
    assert sweep().counts == {}
    stored.age_store()
    assert sweep().counts == {"orphans": 1}
    assert stored.left() == set()


def test_prepared_data_that_nothing_records_goes_when_it_is_old() -> None:
    stored.trained(prepared="known", steps=(), adapter=False)
    stored.put(store.prepared_url("unknown"))
    stored.put(store.prepared_url("known") + ".incoming")
    assert sweep().counts == {}
    stored.age_store()
    assert sweep().counts == {"orphans": 2}
    assert stored.left() == {"prepared/known"}


def test_prepared_data_of_an_earlier_version_is_put_on_record() -> None:
    stored.trained(prepared="abc", steps=(), adapter=False)
    stored.sql("DELETE FROM prepared_data")
    stored.age_store()
    assert sweep().counts == {}
    ((digest, url, size_bytes),) = stored.sql("SELECT digest, url, size_bytes FROM prepared_data")
    assert (digest, url, size_bytes) == ("abc", store.prepared_url("abc"), 100)
    assert stored.left() == {"prepared/abc"}


def test_a_place_is_told_by_job_and_fence_however_the_store_is_spelled(artifacts: str) -> None:
    job_id = stored.trained(outcome=Outcome.LOST, prepared="abc")
    before = stored.left()
    stored.age(2)
    stored.age_store()
    other = f"file://{artifacts}" if artifacts.startswith("/") else artifacts + "/"
    with variables(CELORA_ARTIFACTS=other):
        assert sweep().counts == {}
    assert stored.left() == before
    assert records.job(job_id).prepared_url == store.prepared_url("abc")


def test_empty_folders_go_silently() -> None:
    stored.trained(adapter=False)
    stored.age(8)
    assert sweep().counts == {"checkpoints": 2}
    stored.age_store()
    assert sweep().counts == {}
    assert stored.left() == set()


def test_another_databases_store_is_left_alone(artifacts: str) -> None:
    store.write_text(f"{artifacts}/celora-database", "another/16384")
    stored.put(store.checkpoint_url("ftjob-theirs", 3, 5))
    job_id = stored.trained()
    stored.age(8)
    stored.age_store()
    assert sweeping.preview().counts == {"checkpoints": 2}
    done = sweep()
    assert done.counts == {"checkpoints": 2}  # its own, by their records
    assert "another database" in done.problems[0]
    assert "jobs/ftjob-theirs/3/checkpoints/step-5" in stored.left()
    assert records.job(job_id).adapter_url is not None


def test_the_first_sweep_writes_down_whose_the_store_is(artifacts: str) -> None:
    stored.put(store.prepared_url("abc"))
    sweeping.preview()
    assert store.read_text(f"{artifacts}/celora-database") is None
    sweep()
    assert store.read_text(f"{artifacts}/celora-database") is not None
    assert sweep().problems == []

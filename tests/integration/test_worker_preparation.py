"""One preprocessing attempt in this process: real rows, a real tokenizer, a real database."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from gpu_worker import prepared_data
from gpu_worker.session import WorkerSession
from models import secrets, store
from models.queries import jobs
from models.queries.hub_tokens import set_hub_token
from models.session import transaction
from models.states import Outcome, StopReason
from tasks.preparation import prepare_job
from tests import records
from tests.environment import variables
from tests.waiting import until

ROWS = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture
def worker(database: str, tmp_path: Path) -> Iterator[WorkerSession]:  # noqa: ARG001 (it has to be there)
    with variables(
        CELORA_HOME=str(tmp_path / "home"),
        CELORA_CONTROL_SECONDS="0.1",
        CELORA_CANCEL_GRACE_SECONDS="2",
    ):
        records.clear()
        yield WorkerSession("cpu@host")
        until(lambda: not any(one.name.startswith("lease") for one in threading.enumerate()))


def rows(path: Path, count: int = ROWS) -> Path:
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(count))
    path.write_text("\n".join(lines))
    return path


def placed(**fields: Any) -> tuple[str, int]:
    job_id = records.submit(**fields)
    assert records.place_preparation() == 1
    return job_id, records.job(job_id).fence


def test_data_is_prepared_sealed_and_found_again(
    worker: WorkerSession, base: Path, tmp_path: Path
) -> None:
    data = rows(tmp_path / "rows.jsonl")
    found = []
    for _ in range(2):
        job_id, fence = placed(base_model=str(base), dataset=str(data), max_sequence_length=64)
        assert prepare_job(worker, job_id, fence)
        done = records.job(job_id)
        assert (done.state, done.stage) == ("queued", "train")
        assert done.prepared_url is not None
        assert done.data_digest is not None
        assert done.base_revision is not None
        assert done.base_revision.startswith("sha256:")
        assert done.verdict is not None
        assert done.verdict["rows_train"] + done.verdict["rows_eval"] == ROWS
        folder = store.local_path(done.prepared_url)
        prepared_data.verify(folder, done.data_digest)
        found.append((done.prepared_url, (folder / "train.arrow").stat().st_mtime_ns))
        assert not (store.work_folder(job_id, fence) / "prepare").exists()
    assert found[0] == found[1]  # the second job used what the first had made


def test_other_bytes_are_prepared_anew(worker: WorkerSession, base: Path, tmp_path: Path) -> None:
    urls = set()
    for count in (ROWS, ROWS + 1):
        data = rows(tmp_path / "rows.jsonl", count)
        job_id, fence = placed(base_model=str(base), dataset=str(data), max_sequence_length=64)
        assert prepare_job(worker, job_id, fence)
        urls.add(records.job(job_id).prepared_url)
    assert len(urls) == 2


def test_bad_rows_fail_the_job_with_their_lines(
    worker: WorkerSession, base: Path, tmp_path: Path
) -> None:
    data = rows(tmp_path / "rows.jsonl")
    data.write_text(data.read_text() + '\n{"prompt": "torn')
    job_id, fence = placed(base_model=str(base), dataset=str(data))
    assert not prepare_job(worker, job_id, fence)
    failed = records.job(job_id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "invalid_data"
    assert failed.error["problems"][0]["line"] == ROWS + 1
    assert failed.gpu_seconds == 0


def test_a_base_that_is_not_there_fails_the_job(worker: WorkerSession, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl")
    job_id, fence = placed(base_model=str(tmp_path / "none"), dataset=str(data))
    assert not prepare_job(worker, job_id, fence)
    failed = records.job(job_id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "invalid_base_model"


@pytest.mark.parametrize("field", ["dataset", "eval_dataset"])
def test_data_that_is_not_there_is_told_before_a_base_is_fetched(
    worker: WorkerSession, tmp_path: Path, field: str
) -> None:
    missing = str(tmp_path / "missing.jsonl")
    fields = {"dataset": str(rows(tmp_path / "rows.jsonl"))} | {field: missing}
    job_id, fence = placed(base_model=str(tmp_path / "none"), **fields)
    assert not prepare_job(worker, job_id, fence)
    error = records.job(job_id).error
    assert error is not None
    assert (error["message"], error["where"]) == ("there is no such file or folder", missing)


@pytest.mark.parametrize(
    ("reason", "state"), [(StopReason.CANCEL, "cancelled"), (StopReason.PAUSE, "paused")]
)
def test_a_stop_ends_it_soon_and_leaves_nothing(
    worker: WorkerSession, base: Path, tmp_path: Path, reason: StopReason, state: str
) -> None:
    data = rows(tmp_path / "rows.jsonl", 300_000)
    job_id, fence = placed(base_model=str(base), dataset=str(data))
    took: list[float] = []

    def stop() -> None:
        until(lambda: records.job(job_id).activity is not None)
        time.sleep(0.5)
        with transaction() as session:
            jobs.request_stop(session, job_id, reason)
        took.append(time.monotonic())

    thread = threading.Thread(target=stop)
    thread.start()
    assert not prepare_job(worker, job_id, fence)
    thread.join()
    assert time.monotonic() - took[0] < 3
    assert records.state(job_id) == state
    until(lambda: not (store.work_folder(job_id, fence) / "prepare").exists())
    assert not store.local_path(store.prepared_url("x")).parent.exists()


def test_a_lost_lease_writes_nothing(worker: WorkerSession, base: Path, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", 300_000)
    job_id, fence = placed(base_model=str(base), dataset=str(data))

    def lose() -> None:
        until(lambda: records.job(job_id).activity is not None)
        records.end(job_id, fence, Outcome.LOST)

    thread = threading.Thread(target=lose)
    thread.start()
    assert not prepare_job(worker, job_id, fence)
    thread.join()
    again = records.job(job_id)
    assert (again.state, again.prepared_url) == ("pending", None)
    until(lambda: not (store.work_folder(job_id, fence) / "prepare").exists())


def test_quality_is_on_record_and_in_the_report_and_nothing_private_is(
    worker: WorkerSession, base: Path, tmp_path: Path
) -> None:
    from celora.report.facts import read_runs
    from celora.report.page import html

    secret, data = "ghp_" + "a1B2" * 9, tmp_path / "rows.jsonl"
    answer = "whoever asks politely is told, at any time of the day, that it is"
    lines = [
        {"prompt": f"what is the token of {n}?", "completion": f"{answer} {secret}, number {n}"}
        for n in range(ROWS)
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    job_id, fence = placed(base_model=str(base), dataset=str(data), max_sequence_length=256)
    assert prepare_job(worker, job_id, fence)
    verdict = records.job(job_id).verdict
    assert verdict is not None
    assert verdict["quality"]["private"][0]["rows"] == ROWS
    with transaction() as session:
        row = session.scalar(text("SELECT jobs::text FROM jobs WHERE id = :id"), {"id": job_id})
    assert "GitHub token" in row
    assert secret not in row
    page = html(read_runs([job_id]))
    assert f"{ROWS} in {ROWS} rows: line " in page
    assert f"{ROWS} rows hold what looks like a GitHub token; take it out" in page
    assert "languages of answers" in page
    assert secret not in page


def test_without_held_out_rows_the_verdict_warns(
    worker: WorkerSession, base: Path, tmp_path: Path
) -> None:
    data = rows(tmp_path / "rows.jsonl")
    job_id, fence = placed(
        base_model=str(base),
        dataset=str(data),
        max_sequence_length=64,
        validation_fraction=0,
    )
    assert prepare_job(worker, job_id, fence)
    verdict = records.job(job_id).verdict
    assert verdict is not None
    assert verdict["rows_eval"] == 0
    assert any("no row is held out" in warning for warning in verdict["warnings"])


def test_a_hub_that_is_away_is_asked_again_and_named_in_the_end(
    worker: WorkerSession, tmp_path: Path
) -> None:
    """Nobody listens at HF_ENDPOINT."""
    data = rows(tmp_path / "rows.jsonl")
    with variables(CELORA_FETCH_PATIENCE_SECONDS="0", CELORA_MAX_LOSSES="3"):
        job_id, fence = placed(base_model="owner/tiny", dataset=str(data))
        states = []
        for _ in range(3):
            assert not prepare_job(worker, job_id, fence)
            states.append(records.state(job_id))
            records.place_preparation()
            fence = records.job(job_id).fence
    assert states == ["pending", "pending", "failed"]
    error = records.job(job_id).error
    assert error is not None
    assert error["code"] == "unavailable"
    assert "the hub did not answer" in error["message"]
    assert error["where"] == "owner/tiny"
    assert error["remedy"]


def test_a_stop_does_not_wait_for_a_hub(worker: WorkerSession, tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl")
    with variables(CELORA_FETCH_PATIENCE_SECONDS="600"):
        job_id, fence = placed(base_model="owner/tiny", dataset=str(data))

        def cancel() -> None:
            until(lambda: "did not answer" in (records.job(job_id).activity or ""))
            with transaction() as session:
                jobs.request_stop(session, job_id, StopReason.CANCEL)

        thread = threading.Thread(target=cancel)
        thread.start()
        assert not prepare_job(worker, job_id, fence)
        thread.join()
    assert records.state(job_id) == "cancelled"


def test_a_key_that_is_not_there_costs_a_job_nothing_but_time(
    worker: WorkerSession, base: Path, tmp_path: Path
) -> None:
    data = rows(tmp_path / "rows.jsonl")
    key = secrets.new_key()
    job_id, fence = placed(base_model=str(base), dataset=str(data))
    with variables(CELORA_SECRET_KEY=key), transaction() as session:
        set_hub_token(session, "default", secrets.seal("hf_secret"))
    with variables(CELORA_FETCH_PATIENCE_SECONDS="0", CELORA_SECRET_KEY=secrets.new_key()):
        for _ in range(5):  # more often than a job may be lost
            assert not prepare_job(worker, job_id, fence)
            assert (records.job(job_id).state, records.job(job_id).losses) == ("pending", 0)
            reason = records.attempt(job_id, fence).reason
            assert reason is not None
            assert "the hub token of tenant default cannot be opened here" in reason
            assert records.place_preparation() == 1
            fence = records.job(job_id).fence
    with variables(CELORA_SECRET_KEY=key):
        assert prepare_job(worker, job_id, fence)
    assert records.job(job_id).state == "queued"

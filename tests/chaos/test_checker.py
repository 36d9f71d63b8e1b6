"""The account of a run is worth something only if it can come out badly: doctored evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from models.queries import attempts, history, jobs, products
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.chaos import audit
from tests.chaos.checker import Findings, check
from tests.chaos.ledger import Entry

STEPS = 3
Life = dict[str, Any]


@pytest.fixture(scope="module")
def url(database: str) -> str:
    plain = make_url(database).set(drivername="postgresql")
    found = plain.render_as_string(hide_password=False)
    audit.install(found)
    return found


@pytest.fixture
def promised(url: str, tmp_path: Path) -> Entry:
    """One job that went through all its stages, in two attempts, as the product does it."""
    records.clear()
    with psycopg.connect(url) as connection:
        connection.execute("TRUNCATE chaos.writes, chaos.moves, chaos.ends")
    records.add_gpu()
    with transaction() as session:
        job_id = jobs.insert_job(
            session,
            records.spec(base_model=f"scripted:?steps={STEPS}"),
            tenant="default",
            user="ada",
            idempotency_key="key-1",
        ).id
    records.prepare(job_id)
    records.place()
    first = records.claimed(job_id, Stage.TRAIN)
    say(job_id, first.fence, 1)
    save(job_id, first.fence, tmp_path / "step-1")
    records.end(job_id, first.fence, Outcome.LOST)
    records.place()
    second = records.claimed(job_id, Stage.TRAIN)
    for step in (2, STEPS):
        say(job_id, second.fence, step)
    with transaction() as session:
        products.register_artifact(
            session, job_id, second.fence, kind="adapter", url=str(adapter(tmp_path)), size_bytes=3,
            digest=hashlib.sha256(b"abc").hexdigest(),
        )  # fmt: skip
        attempts.finish_stage(session, job_id, second.fence, Stage.TRAIN, Stage.EVALUATE)
    records.claimed(job_id, Stage.EVALUATE)
    with transaction() as session:
        products.record_evaluation(
            session, job_id, second.fence, subject="tuned", rows=1, generated_rows=0, loss=1.0,
            perplexity=2.7, token_accuracy=0.5, seconds=0.1,
        )  # fmt: skip
        attempts.end_attempt(session, job_id, second.fence, Outcome.COMPLETED)
    return Entry("key-1", "default", "completed", job_id=job_id)


def say(job_id: str, fence: int, step: int) -> None:
    progress = history.Progress(step=step, total_steps=STEPS, trained_tokens=100 * step)
    points = [("train_loss", step, 1.0)]
    with transaction() as session:
        history.record_metrics(session, job_id, fence, Stage.TRAIN, points, progress=progress)


def save(job_id: str, fence: int, folder: Path) -> None:
    folder.mkdir()
    (folder / "state.json").write_text('{"step": 1}')
    with transaction() as session:
        products.register_checkpoint(
            session, job_id, fence, step=1, url=str(folder), size_bytes=11, trained_tokens=100,
            metrics={},
        )  # fmt: skip


def adapter(folder: Path) -> Path:
    made = folder / "adapter"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(b"abc")
    return made


@pytest.fixture
def judged(url: str, promised: Entry) -> Callable[..., Findings]:
    """Doctor the tables with a statement, and have them judged."""

    def judge(doctor: str = "", *, lives: list[Life] | None = None) -> Findings:
        with psycopg.connect(url) as connection:
            connection.execute(doctor.encode())
        return check(url, [promised], lives or [])

    return judge


def test_nothing_is_found_where_nothing_happened(judged: Callable[..., Findings]) -> None:
    found = judged()
    assert found.clean, found
    assert (found.submitted, found.completed) == (1, 1)


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        ("DELETE FROM jobs", "there is no job"),
        ("UPDATE jobs SET state = 'queued'", "has not ended"),
        ("UPDATE jobs SET state = 'failed'", "is failed, not completed"),
        ("DELETE FROM metrics WHERE step = 2", "has no loss for 1 of its steps"),
        ("DELETE FROM evaluations", "without its evaluation"),
    ],
)
def test_what_is_lost_is_found(judged: Callable[..., Findings], doctor: str, says: str) -> None:
    assert any(says in sentence for sentence in judged(doctor).lost)


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        ("UPDATE attempts SET outcome = 'completed' WHERE outcome = 'lost'", "2 attempts that"),
        (
            (
                "INSERT INTO artifacts (job_id, fence, kind, url, size_bytes)"
                " SELECT job_id, fence, kind, url, size_bytes FROM artifacts"
            ),
            "2 adapters",
        ),
        ("UPDATE jobs SET trained_tokens = 400", "counts 400 tokens, not 300"),
        ("UPDATE jobs SET gpu_seconds = gpu_seconds * 2 + 1", "charged for"),
        ("UPDATE jobs SET stage = 'train'", "went back from evaluate to train"),
        ("UPDATE jobs SET state = 'running'", "went from completed to running"),
        ("UPDATE attempts SET claimed_stages = '{train,train}'", "claimed a stage twice"),
    ],
)
def test_what_is_duplicated_is_found(
    judged: Callable[..., Findings], doctor: str, says: str
) -> None:
    assert any(says in sentence for sentence in judged(doctor).duplicated)


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        ("UPDATE attempts SET ended_at = ended_at + interval '1 hour'", "gpu_id"),
        ("UPDATE attempts SET ended_at = ended_at + interval '1 hour'", "job_id"),
        (
            "UPDATE attempts SET reason = 'its lease was not renewed' WHERE outcome = 'lost'",
            "cut short",
        ),
        ("UPDATE attempts SET trainer_pid = 4711", "nobody has watched trainer 4711"),
    ],
)
def test_leases_that_overlap_are_found(
    judged: Callable[..., Findings], doctor: str, says: str
) -> None:
    assert any(says in sentence for sentence in judged(doctor).overlapping)


def test_two_trainers_alive_on_one_gpu_are_found(judged: Callable[..., Findings]) -> None:
    first: Life = {"gpu": "cpu-a-0", "pid": 10, "session": 10, "began": 1.0, "ended": 5.0}
    second = first | {"pid": 20, "session": 20, "began": 5.1, "ended": 9.0}
    forked = first | {"pid": 11, "ended": 5.0}
    assert judged(lives=[first, forked, second]).clean
    (said,) = judged(lives=[first, forked | {"ended": 6.0}, second]).overlapping
    assert "trainer 20" in said
    assert judged(lives=[first, second | {"gpu": "cpu-a-1", "began": 2.0}]).clean


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        ("UPDATE metrics SET value = 2 WHERE step = 1", "metrics under fence 2"),
        ("UPDATE metrics SET fence = 7 WHERE step = 1", "which nobody had claimed"),
        (
            (
                "INSERT INTO checkpoints (job_id, fence, step, url, size_bytes, trained_tokens,"
                " metrics) SELECT job_id, fence, 2, url, 1, 1, '{}' FROM checkpoints"
            ),
            "checkpoints under fence 2",
        ),
        ("UPDATE jobs SET fence = 1", "the fence fell from 3 to 1"),
        ("UPDATE checkpoints SET deleted_at = NULL, url = url || 'x'", "is registered and not"),
        ("UPDATE artifacts SET digest = 'other'", "not what was registered"),
    ],
)
def test_stale_writes_and_missing_files_are_found(
    judged: Callable[..., Findings], doctor: str, says: str
) -> None:
    assert any(says in sentence for sentence in judged(doctor).stale)


def test_a_torn_checkpoint_is_found(judged: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "step-1" / "state.json").write_text('{"step"')
    found = judged().stale
    assert any("has 7 bytes, not 11" in sentence for sentence in found)
    assert any("is torn" in sentence for sentence in found)


def test_a_cancel_that_was_not_heeded_is_found(url: str, promised: Entry) -> None:
    promised.cancelled = True
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE jobs SET state = 'failed'")
    (said,) = check(url, [promised], []).lost
    assert "not cancelled or completed" in said

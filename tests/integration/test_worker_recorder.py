"""What a stage says reaches Postgres in batches, whole and in order, or not at all when stale."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.engine import make_url

from gpu_worker import recorder
from gpu_worker.checkpoints import CheckpointKeeper
from gpu_worker.lease import Lease, now
from gpu_worker.protocol import CheckpointSaved, Metrics, Point
from gpu_worker.recorder import Recorder
from models import store
from models.queries import history
from models.queries.attempts import Claim
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.environment import variables
from tests.tcp_proxy import TcpProxy, proxy_to
from tests.waiting import until


@pytest.fixture
def line(database: str) -> Iterator[TcpProxy]:
    url = make_url(database)
    with proxy_to(url.host or "127.0.0.1", url.port or 5432) as proxy:
        through = url.set(host="127.0.0.1", port=proxy.port)
        with variables(CELORA_DATABASE_URL=through.render_as_string(hide_password=False)):
            records.clear()
            yield proxy
            proxy.restore()


@pytest.fixture
def claim(line: TcpProxy) -> Claim:  # noqa: ARG001 (it has to be up)
    return records.running()


@pytest.fixture
def start(claim: Claim) -> Iterator[Callable[..., Recorder]]:
    started: list[Recorder] = []

    def make(on_stale: Callable[[], None] = lambda: None) -> Recorder:
        one = Recorder(claim.job_id, claim.fence, Stage.TRAIN, on_stale=on_stale)
        started.append(one)
        return one

    yield make
    for one in started:
        one.abandon()


def metrics(step: int) -> Metrics:
    points = [Point(name="train_loss", step=step, value=1 / step)]
    return Metrics(points=points, step=step, epoch=step / 10, trained_tokens=100 * step)


def steps(job_id: str) -> list[int]:
    with transaction() as session:
        return [point.step for point in history.metrics_of(session, job_id, ["train_loss"])]


def lines(job_id: str) -> list[str]:
    with transaction() as session:
        return [line.line for line in history.logs_of(session, job_id, limit=10_000)]


def test_a_resumed_run_counts_on_from_its_checkpoint(
    claim: Claim, start: Callable[..., Recorder]
) -> None:
    lost = start()
    lost.started(0, 50)
    lost.metrics(metrics(9))
    until(lambda: records.job(claim.job_id).trained_tokens == 900)
    again = start()
    again.started(5, 50, 500)
    until(lambda: records.job(claim.job_id).step == 5)
    assert records.job(claim.job_id).trained_tokens == 500
    again.metrics(metrics(6))
    until(lambda: records.job(claim.job_id).trained_tokens == 600)


def test_points_lines_progress_and_trainer_are_written_while_it_runs(
    claim: Claim, start: Callable[..., Recorder]
) -> None:
    one = start()
    one.started(0, 50)
    one.trainer(4711, warm=True)
    one.activity("training")
    for step in range(1, 6):
        one.metrics(metrics(step))
        one.log("info", f"step {step}")
    until(lambda: steps(claim.job_id) == [1, 2, 3, 4, 5])
    until(lambda: lines(claim.job_id) == [f"step {step}" for step in range(1, 6)])
    job = records.job(claim.job_id)
    assert (job.step, job.total_steps, job.trained_tokens) == (5, 50, 500)
    assert (job.train_loss, job.epoch, job.activity) == (1 / 5, 0.5, "training")
    attempt = records.attempt(claim.job_id, claim.fence)
    assert (attempt.trainer_pid, attempt.trainer_warm) == (4711, True)


def test_the_rest_goes_into_the_transaction_that_ends_the_stage(
    claim: Claim, start: Callable[..., Recorder]
) -> None:
    one = start()
    one.metrics(metrics(1))
    one.stop()
    with transaction() as session:
        one.write_rest(session)
    assert steps(claim.job_id) == [1]


def test_an_outage_loses_nothing_and_blocks_nobody(
    claim: Claim, line: TcpProxy, start: Callable[..., Recorder]
) -> None:
    one = start()
    one.metrics(metrics(1))
    until(lambda: steps(claim.job_id) == [1])
    line.cut()
    began = time.monotonic()
    for step in range(2, 500):
        one.metrics(metrics(step))
        one.log("info", f"step {step}")
    assert time.monotonic() - began < 1
    until(lambda: line.refused >= 3)  # it has tried meanwhile
    line.restore()
    until(lambda: steps(claim.job_id) == list(range(1, 500)))
    until(lambda: lines(claim.job_id) == [f"step {step}" for step in range(2, 500)])


def test_a_flush_waits_until_what_was_said_before_is_written(
    claim: Claim, line: TcpProxy, start: Callable[..., Recorder]
) -> None:
    one = start()
    line.cut()
    one.metrics(metrics(1))
    refused = line.refused
    flush = threading.Thread(target=one.flush)
    flush.start()
    until(lambda: line.refused > refused)
    assert flush.is_alive()
    line.restore()
    flush.join(5)
    assert not flush.is_alive()
    assert steps(claim.job_id) == [1]


def test_no_checkpoint_is_registered_before_the_curve_that_led_to_it(
    claim: Claim, start: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed after it loses nothing: a resume does not say those steps again."""
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 60)
    one = start()
    lease = Lease(
        claim.attempt_id, claim_sent_at=now(), on_stop=lambda _: None, on_lost=lambda _: None
    )
    keeper = CheckpointKeeper(claim.job_id, claim.fence, lease, one.flush)
    folder = store.work_folder(claim.job_id, claim.fence) / "checkpoints" / "step-3"
    folder.mkdir(parents=True)
    for step in (1, 2, 3):
        one.metrics(metrics(step))
    keeper.add(
        CheckpointSaved(step=3, path=str(folder), size_bytes=0, trained_tokens=300, metrics={})
    )
    until(lambda: keeper.registered_step == 3)
    lease.close()
    assert steps(claim.job_id) == [1, 2, 3]


def test_a_stale_fence_is_told_and_nothing_is_written(
    claim: Claim, start: Callable[..., Recorder]
) -> None:
    told = threading.Event()
    one = start(told.set)
    records.end(claim.job_id, claim.fence, Outcome.LOST)
    one.metrics(metrics(1))
    one.log("info", "too late")
    assert told.wait(5)
    assert steps(claim.job_id) == []
    assert lines(claim.job_id) == []


def test_a_flood_of_lines_keeps_the_newest_and_says_how_many_went(
    claim: Claim, start: Callable[..., Recorder], line: TcpProxy
) -> None:
    one = start()
    line.cut()
    extra = 37
    for number in range(recorder.MOST_LINES + extra):
        one.log("info", f"{number}")
    line.restore()
    until(lambda: bool(lines(claim.job_id)))
    one.stop()
    with transaction() as session:
        one.write_rest(session)
    found = lines(claim.job_id)
    assert found[0].endswith("lines were dropped")
    assert found[-1] == f"{recorder.MOST_LINES + extra - 1}"


def test_what_is_not_text_is_written_all_the_same(
    claim: Claim, start: Callable[..., Recorder]
) -> None:
    one = start()
    one.log("info", "a\0b \ud800")
    one.stop()
    with transaction() as session:
        one.write_rest(session)
    assert lines(claim.job_id) == ["a\ufffdb ?"]

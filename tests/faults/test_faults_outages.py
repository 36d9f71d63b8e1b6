"""A GPU worker whose lines to broker and database fail, and one that is stopped in its tracks."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from models.queries import products
from models.session import transaction
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    FAST,
    at_step,
    family,
    gpu_worker,
    in_state,
    is_gone,
    job,
    outcomes,
    start_gpu_worker,
    steps_once,
    submit,
    trainer_of,
    tries,
    words,
)
from tests.stack import Stack
from tests.tcp_proxy import TcpProxy, proxy_to

pytestmark = pytest.mark.broker

LEASE, MARGIN = (float(FAST[f"CELORA_{name}_SECONDS"]) for name in ("LEASE", "KILL_MARGIN"))


@pytest.fixture(scope="module")
def database_line(database: str) -> Iterator[TcpProxy]:
    url = make_url(database)
    with proxy_to(url.host or "127.0.0.1", url.port or 5432) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def broker_line(broker: str) -> Iterator[TcpProxy]:
    url = make_url(broker)
    with proxy_to(url.host or "127.0.0.1", url.port or 5672) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def pool(
    stack: Stack, database: str, broker: str, database_line: TcpProxy, broker_line: TcpProxy
) -> Stack:
    """Only the GPU worker is behind the lines that fail."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    through = {
        name: make_url(url)
        .set(host="127.0.0.1", port=line.port)
        .render_as_string(hide_password=False)
        for name, url, line in (
            ("CELORA_DATABASE_URL", database, database_line),
            ("CELORA_BROKER_URL", broker, broker_line),
        )
    }
    start_gpu_worker(stack, 1, **through)
    return stack


@pytest.mark.fault(8, 11)
@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        pytest.param("cut", 2, marks=pytest.mark.slow),
        ("go_silent", 2),
        pytest.param("cut", 120, marks=pytest.mark.slow),
        pytest.param("go_silent", 120, marks=pytest.mark.slow),
    ],
)
def test_a_broker_that_is_away_changes_nothing_for_a_job_that_runs(
    pool: Stack, broker_line: TcpProxy, fault: str, seconds: int, observe: Observe
) -> None:
    job_id = submit("steps=150&step_seconds=0.02&checkpoint_every=50")
    at_step(pool, job_id, 5)
    faults = broker_line.refused + broker_line.held
    getattr(broker_line, fault)()
    # Training ends while the broker is away; its tail cannot be sent.
    pool.wait_until("it has trained", lambda: job(job_id).stage == "evaluate", seconds=30)
    time.sleep(seconds)
    assert job(job_id).state == "running"
    assert outcomes(job_id) == [None]
    broker_line.restore()
    assert broker_line.refused + broker_line.held > faults
    began = time.monotonic()
    in_state(pool, job_id, "completed", seconds=60)
    assert outcomes(job_id) == ["completed"]
    steps_once(job_id, 150)
    observe("connections cut or chunks held back", broker_line.refused + broker_line.held - faults)
    observe("seconds from the broker's return to the job's end", time.monotonic() - began)


@pytest.mark.fault(9)
def test_a_short_outage_of_the_database_kills_nothing(
    pool: Stack, database_line: TcpProxy, observe: Observe
) -> None:
    job_id = submit("steps=250&step_seconds=0.02&checkpoint_every=20")
    trainer = trainer_of(at_step(pool, job_id, 10))
    refused = database_line.refused
    database_line.cut()
    time.sleep(LEASE - MARGIN - 2)
    assert database_line.refused > refused + 2
    database_line.restore()
    in_state(pool, job_id, "completed", seconds=40)
    assert outcomes(job_id) == ["completed"]
    assert trainer.is_running()
    steps_once(job_id, 250)
    observe("seconds without the database", LEASE - MARGIN - 2)
    observe("connections refused", database_line.refused - refused)


@pytest.mark.fault(10, 11)
@pytest.mark.parametrize("fault", [pytest.param("cut", marks=pytest.mark.slow), "go_silent"])
def test_a_long_outage_of_the_database_stops_the_trainer_before_the_lease_ends(
    pool: Stack, database_line: TcpProxy, fault: str, observe: Observe
) -> None:
    job_id = submit("steps=500&step_seconds=0.02&checkpoint_every=20&children=1")
    attempt = at_step(pool, job_id, 25)
    trainer = trainer_of(attempt)
    processes = [trainer, *trainer.children()]
    faults = database_line.refused + database_line.held
    getattr(database_line, fault)()
    began = time.monotonic()
    pool.wait_until(
        "the trainer is dead",
        lambda: all(map(is_gone, processes)),
        seconds=LEASE - MARGIN + 1,
    )
    assert database_line.refused + database_line.held > faults
    observe("seconds until the trainer was dead", time.monotonic() - began)
    # Dead while the lease still stands: nobody else has the job yet.
    assert tries(job_id)[-1].ended_at is None
    pool.wait_until("the lease ran out", lambda: outcomes(job_id) == ["lost"], seconds=10)
    with transaction() as session:
        saved = products.newest_checkpoint(session, job_id)
    assert saved is not None
    database_line.restore()
    in_state(pool, job_id, "completed", seconds=60)
    assert outcomes(job_id) == ["lost", "completed"]
    assert tries(job_id)[1].start_step == saved.step
    steps_once(job_id, 500)
    observe("resumed from step", saved.step)


@pytest.mark.fault(7)
def test_a_worker_stopped_past_its_lease_writes_nothing_more(pool: Stack, observe: Observe) -> None:
    job_id = submit("steps=400&step_seconds=0.02&checkpoint_every=20")
    attempt = at_step(pool, job_id, 25)
    trainer = trainer_of(attempt)
    child, main = family(trainer)
    for process in (main, child, trainer):
        process.send_signal(signal.SIGSTOP)
    pool.wait_until("the lease ran out", lambda: outcomes(job_id) == ["lost"], seconds=15)
    step = job(job_id).step
    # The old trainer lives, though stopped: its device is not given to anybody.
    time.sleep(float(FAST["CELORA_GPU_STALE_SECONDS"]) / 2)
    assert trainer.is_running()
    assert outcomes(job_id) == ["lost"]
    assert words()[0] in {"unknown", "stale"}
    assert job(job_id).step == step
    for process in (trainer, child, main):
        process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    pool.wait_until("the old trainer is dead", lambda: is_gone(trainer), seconds=5)
    observe("seconds until the old trainer was dead", time.monotonic() - began)
    in_state(pool, job_id, "completed", seconds=60)
    # On a busy machine so short a lease may run out once more; the promise is what was written.
    first, *between, last = outcomes(job_id)
    assert (first, set(between) - {"lost"}, last) == ("lost", set(), "completed")
    steps_once(job_id, 400)
    late = written_after_its_end(job_id, attempt.fence)
    assert late == 0
    observe("rows that the old attempt wrote after its end", late)


def written_after_its_end(job_id: str, fence: int) -> int:
    query = """
        SELECT (SELECT count(*) FROM metrics
                WHERE job_id = :job_id AND fence = :fence AND recorded_at > ended_at)
             + (SELECT count(*) FROM log_lines
                WHERE job_id = :job_id AND fence = :fence AND logged_at > ended_at)
             + (SELECT count(*) FROM checkpoints
                WHERE job_id = :job_id AND fence = :fence AND registered_at > ended_at)
        FROM attempts WHERE job_id = :job_id AND fence = :fence
    """
    with transaction() as session:
        found = session.scalar(text(query), {"job_id": job_id, "fence": fence})
    return int(found)


@pytest.mark.fault(8, 16)
def test_a_worker_without_its_broker_still_drains(pool: Stack, broker_line: TcpProxy) -> None:
    job_id = submit("steps=500&step_seconds=0.02&checkpoint_every=1000")
    trainer = trainer_of(at_step(pool, job_id, 10))
    broker_line.cut()
    assert pool.stop(gpu_worker(pool)) == 0
    assert is_gone(trainer)
    assert outcomes(job_id) == ["drained"]

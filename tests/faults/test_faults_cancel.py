"""Cancels in every situation of a job's life, and in the moment of its completion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import psutil
import pytest
from sqlalchemy.engine import make_url

from models.queries import gpus as gpu_rows
from models.queries import history, jobs, products
from models.session import transaction
from models.states import StopReason
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    FAST,
    at_step,
    gpus,
    in_state,
    is_gone,
    job,
    outcomes,
    pool_child,
    start_gpu_worker,
    submit,
    tickets,
    trainer_of,
    tries,
    words,
    worker_main,
)
from tests.stack import Stack
from tests.tcp_proxy import TcpProxy, proxy_to

pytestmark = pytest.mark.broker

CANCELLED_WITHIN = 15.0  # seconds


@pytest.fixture(scope="module")
def broker_line(broker: str) -> Iterator[TcpProxy]:
    url = make_url(broker)
    with proxy_to(url.host or "127.0.0.1", url.port or 5672) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def pool(stack: Stack, broker: str, broker_line: TcpProxy) -> Stack:
    """One slot, whose worker reaches the broker over a line that can be cut."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    through = make_url(broker).set(host="127.0.0.1", port=broker_line.port)
    start_gpu_worker(stack, 1, CELORA_BROKER_URL=through.render_as_string(hide_password=False))
    return stack


def has_ended(job_id: str) -> bool:
    return job(job_id).finished_at is not None


def cancel(job_id: str) -> None:
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)


# Situations: each brings a job there, gives its id, and lets things go on at the end.


@contextmanager
def suspended(*processes: psutil.Process) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def pending(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    """Its preparation's ticket lies in the queue of a worker that stands still."""
    cpu = next(one for one in pool.running if one.name == "cpu-worker")
    main = psutil.Process(cpu.pid)
    with suspended(main, *main.children()):
        job_id = submit("steps=3")
        pool.wait_until("it was placed", lambda: job(job_id).fence == 1, seconds=10)
        assert job(job_id).state == "pending"
        yield job_id


@contextmanager
def queued(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    """No GPU takes it."""
    (gpu,) = gpus()
    with transaction() as session:
        gpu_rows.set_cordon(session, gpu.host, gpu.index, on=True)
    try:
        job_id = submit("steps=3")
        in_state(pool, job_id, "queued")
        assert tries(job_id) == []
        yield job_id
    finally:
        with transaction() as session:
            gpu_rows.set_cordon(session, gpu.host, gpu.index, on=False)


@contextmanager
def placed(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    """Its ticket is with the GPU's worker, whose child stands still before the claim."""
    (gpu,) = gpus()
    with suspended(pool_child(worker_main(pool, gpu))):
        job_id = submit("steps=3")
        pool.wait_until("its ticket is out", lambda: any(t.sent_at for t in tickets(job_id)))
        assert tries(job_id)[0].claimed_at is None
        yield job_id


@contextmanager
def running(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    job_id = submit("steps=100000&step_seconds=0.01&checkpoint_every=50")
    at_step(pool, job_id, 5)
    yield job_id


@contextmanager
def hanging(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    """Its step never ends, and it has forked a data loader."""
    job_id = submit("hang_at=3&children=1&step_seconds=0")
    at_step(pool, job_id, 2)
    yield job_id


@contextmanager
def writing_a_checkpoint(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    job_id = submit("checkpoint_every=2&save_seconds=60&children=1&step_seconds=0")
    pool.wait_until("it saves", lambda: job(job_id).activity == "writing a checkpoint", seconds=20)
    yield job_id
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is None


@contextmanager
def between_stages(pool: Stack, line: TcpProxy) -> Iterator[str]:
    """Training is done, and its tail cannot be sent."""
    job_id = submit("steps=150&step_seconds=0.02")
    at_step(pool, job_id, 5)
    refused = line.refused
    line.cut()
    try:
        pool.wait_until("it has trained", lambda: job(job_id).stage == "evaluate", seconds=20)
        assert line.refused > refused
        assert tries(job_id)[0].claimed_stages == ["train"]
        yield job_id
    finally:
        line.restore()


@contextmanager
def evaluating(pool: Stack, _line: TcpProxy) -> Iterator[str]:
    job_id = submit("steps=2&step_seconds=0&eval_seconds=60")
    pool.wait_until(
        "it is evaluated", lambda: tries(job_id) and len(tries(job_id)[0].claimed_stages) > 1
    )
    yield job_id


SITUATIONS: dict[Callable[..., object], list[str]] = {
    pending: [],
    queued: [],
    placed: [],
    running: ["train"],
    hanging: ["train"],
    writing_a_checkpoint: ["train"],
    between_stages: ["train"],
    evaluating: ["train", "evaluate"],
}


@pytest.mark.fault(14)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__)
def test_a_job_is_cancelled_wherever_it_is(
    pool: Stack, broker_line: TcpProxy, situation: Callable[..., object], observe: Observe
) -> None:
    with ExitStack() as block:
        job_id: str = block.enter_context(situation(pool, broker_line))  # type: ignore[arg-type]  # context managers
        attempts = tries(job_id)
        trainers = [trainer_of(one) for one in attempts if one.trainer_pid is not None]
        forked = [child for trainer in trainers for child in trainer.children()]
        cancel(job_id)
        began = time.monotonic()
        in_state(pool, job_id, "cancelled", seconds=CANCELLED_WITHIN)
        observe("seconds until it was cancelled", time.monotonic() - began)
        assert all(map(is_gone, forked))
    pool.wait_until("the slot is free", lambda: words() == ["free"], seconds=30)
    claimed = [stage for one in tries(job_id) for stage in one.claimed_stages]
    assert claimed == SITUATIONS[situation]  # the tail never starts
    assert job(job_id).state == "cancelled"
    # A warm process that waits for the next job may be left, one that works for this job not.
    assert all(is_gone(one) or not one.children() for one in trainers)


@pytest.mark.fault(14)
def test_a_cancelled_trainer_stays_warm_for_the_next_job(pool: Stack) -> None:
    job_id = submit("steps=100000&step_seconds=0.01")
    trainer = trainer_of(at_step(pool, job_id, 5))
    cancel(job_id)
    in_state(pool, job_id, "cancelled", seconds=CANCELLED_WITHIN)
    following = submit("steps=100000&step_seconds=0.01")
    assert trainer_of(at_step(pool, following, 1)) == trainer
    cancel(following)
    in_state(pool, following, "cancelled", seconds=CANCELLED_WITHIN)


@pytest.mark.fault(15)
def test_a_job_cancelled_near_its_completion_comes_to_one_end(
    pool: Stack, observe: Observe
) -> None:
    """Cancelled ever closer to the moment of completion: one end, and one word of it."""
    ends = []
    for number in range(10):
        job_id = submit("steps=100&step_seconds=0.01", evaluate=False)
        at_step(pool, job_id, 1)
        time.sleep(0.07 * number)
        cancel(job_id)
        pool.wait_until("it has ended", partial(has_ended, job_id), seconds=15)
        ended = job(job_id)
        assert outcomes(job_id) == [ended.state]
        with transaction() as session:
            told = [event.kind for event in history.events_of(session, job_id)]
        assert [kind for kind in told if kind in {"completed", "cancelled"}] == [ended.state]
        ends.append(ended.state)
    observe("ends", {state: ends.count(state) for state in sorted(set(ends))})


@pytest.mark.fault(15)
def test_many_cancels_at_once_are_one(pool: Stack, observe: Observe) -> None:
    job_id = submit("steps=100000&step_seconds=0.01")
    at_step(pool, job_id, 2)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: cancel(job_id), range(8)))
    in_state(pool, job_id, "cancelled", seconds=CANCELLED_WITHIN)
    with transaction() as session:
        told = [event.kind for event in history.events_of(session, job_id)]
    assert told.count("stop_requested") == told.count("cancelled") == 1
    observe("stop requests on record", told.count("stop_requested"))

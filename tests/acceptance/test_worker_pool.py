"""Two CPU slots, RabbitMQ, Postgres and real processes; jobs play a script instead of training."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from gpu_worker.session import DROPPED_TICKETS
from models.queries import history, jobs, products
from models.session import transaction
from models.states import StopReason
from models.tables import Counter
from tests.scripted_jobs import (
    FAST,
    at_step,
    family,
    gpu_of,
    gpu_worker,
    gpus,
    in_state,
    is_gone,
    job,
    outcomes,
    start_gpu_worker,
    submit,
    trainer_of,
    tries,
    words,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack)
    return stack


def wait_for(stack: Stack, what: str, condition: Callable[[], object], seconds: float) -> None:
    stack.wait_until(what, condition, seconds=seconds)


def test_a_job_is_prepared_trained_evaluated_and_recorded(pool: Stack) -> None:
    job_id = submit("steps=30&checkpoint_every=10&noise=2")
    done = in_state(pool, job_id, "completed")
    assert (done.step, done.total_steps, done.trained_tokens) == (30, 30, 3000)
    assert outcomes(job_id) == ["completed"]  # train and evaluate on one attempt
    assert done.result is not None
    assert done.result["evaluation"]["tuned"]["exact_match"] == 0.95
    assert done.adapter_url is not None
    assert (Path(done.adapter_url) / "adapter_model.safetensors").exists()
    with transaction() as session:
        points = history.metrics_of(session, job_id, ["train_loss"])
        lines = [line.line for line in history.logs_of(session, job_id)]
        steps = [one.step for one in products.checkpoints_of(session, job_id)]
        kinds = [event.kind for event in history.events_of(session, job_id)]
    assert [point.step for point in points] == list(range(1, 31))
    assert lines[:2] == ["noise 0", "noise 1"]
    assert steps == [20, 10]
    assert kinds[0] == "submitted"
    assert kinds[-1] == "completed"
    assert 0 < done.gpu_seconds < 30


def test_two_run_side_by_side_and_the_third_follows_by_itself(pool: Stack) -> None:
    first, second, third = (submit("steps=80&step_seconds=0.03") for _ in range(3))
    at_step(pool, first, 5)
    at_step(pool, second, 5)
    assert job(third).state == "queued"
    assert len({tries(one)[0].gpu_id for one in (first, second)}) == 2
    for one in (first, second, third):
        in_state(pool, one, "completed")
    last, before = tries(third)[0], tries(first) + tries(second)
    assert last.claimed_at is not None
    assert min(one.ended_at for one in before if one.ended_at is not None) < last.claimed_at


def test_a_running_job_is_cancelled_and_its_trainer_stays_warm(pool: Stack) -> None:
    job_id = submit("steps=100000&step_seconds=0.01&checkpoint_every=50")
    attempt = at_step(pool, job_id, 5)
    began = time.monotonic()
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    in_state(pool, job_id, "cancelled", seconds=15)
    assert time.monotonic() - began < 5
    assert trainer_of(attempt).is_running()


@pytest.mark.parametrize(
    "script", ["hang_at=3&children=1", "checkpoint_every=2&save_seconds=60&children=1"]
)
def test_a_job_that_hangs_or_saves_is_cancelled_by_killing(pool: Stack, script: str) -> None:
    job_id = submit(f"{script}&step_seconds=0")
    trainer = trainer_of(at_step(pool, job_id, 2))
    children = trainer.children()
    assert len(children) == 1
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    in_state(pool, job_id, "cancelled", seconds=15)
    assert all(is_gone(process) for process in (trainer, *children))
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is None


def test_a_job_is_cancelled_in_its_evaluation(pool: Stack) -> None:
    job_id = submit("steps=2&step_seconds=0&eval_seconds=60")
    pool.wait_until("it is evaluated", lambda: job(job_id).stage == "evaluate", seconds=20)
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    in_state(pool, job_id, "cancelled", seconds=15)


def test_a_paused_job_writes_a_checkpoint_and_resumes_from_it(pool: Stack) -> None:
    job_id = submit("steps=150&step_seconds=0.02&checkpoint_every=1000")
    at_step(pool, job_id, 5)
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.PAUSE)
    in_state(pool, job_id, "paused")
    with transaction() as session:
        saved = products.newest_checkpoint(session, job_id)
        assert saved is not None
        jobs.resume_job(session, job_id)
    done = in_state(pool, job_id, "completed")
    assert [one.start_step for one in tries(job_id)] == [None, saved.step]
    assert done.trained_tokens == 150 * 100


def test_a_killed_trainer_is_lost_and_the_job_resumes(pool: Stack) -> None:
    job_id = submit("steps=120&step_seconds=0.02&checkpoint_every=10")
    attempt = at_step(pool, job_id, 25)
    trainer = trainer_of(attempt)
    trainer.kill()
    done = in_state(pool, job_id, "completed")
    assert is_gone(trainer)
    assert outcomes(job_id) == ["lost", "completed"]
    start = tries(job_id)[1].start_step
    assert start is not None
    assert start >= 20
    assert done.trained_tokens == 120 * 100
    with transaction() as session:
        points = history.metrics_of(session, job_id, ["train_loss"])
    assert [point.step for point in points] == list(range(1, 121))


def test_out_of_memory_is_retried_with_half_the_micro_batch(pool: Stack) -> None:
    job_id = submit("steps=6&oom_at=3&oom_above=1&step_seconds=0", batch_size=4)
    in_state(pool, job_id, "completed")
    assert outcomes(job_id) == ["retried", "retried", "completed"]
    assert job(job_id).overrides == {"batch_size": 1, "gradient_accumulation": 16}
    with transaction() as session:
        kinds = [event.kind for event in history.events_of(session, job_id)]
    assert kinds.count("out_of_memory") == 2


def test_out_of_memory_with_one_row_fails_clearly(pool: Stack) -> None:
    job_id = submit("oom_at=3&oom_above=0&step_seconds=0", batch_size=2)
    failed = in_state(pool, job_id, "failed")
    assert outcomes(job_id) == ["retried", "failed"]
    assert failed.error is not None
    assert failed.error["code"] == "out_of_memory"
    assert failed.error["remedy"]


def test_the_time_limit_ends_a_job_with_a_checkpoint(pool: Stack) -> None:
    job_id = submit("steps=100000&step_seconds=0.01", time_limit_seconds=2)
    failed = in_state(pool, job_id, "failed")
    assert failed.error is not None
    assert failed.error["code"] == "time_limit"
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is not None


def test_a_process_that_asks_to_be_replaced_is(pool: Stack) -> None:
    for _ in range(3):
        job_id = submit("steps=3&fresh=1&step_seconds=0", evaluate=False)
        in_state(pool, job_id, "completed")
        assert outcomes(job_id) == ["completed"]


def test_a_process_that_leaves_between_two_jobs_costs_nobody_a_loss(pool: Stack) -> None:
    """As one does that trained all weights: its last answer comes before its end."""
    found = [submit("steps=2&leave=0.15&step_seconds=0", evaluate=False) for _ in range(6)]
    for job_id in found:
        in_state(pool, job_id, "completed")
        assert outcomes(job_id) == ["completed"]


def test_a_failed_stage_stops_the_chain(pool: Stack) -> None:
    job_id = submit("fail_at=4&step_seconds=0")
    failed = in_state(pool, job_id, "failed")
    assert failed.stage == "train"
    assert failed.error is not None
    assert failed.error["message"] == "the script fails here"
    assert tries(job_id)[0].claimed_stages == ["train"]


def test_old_and_repeated_tickets_are_dropped_and_counted(pool: Stack, broker: str) -> None:
    def dropped() -> int:
        with transaction() as session:
            row = session.get(Counter, DROPPED_TICKETS)
            return row.value if row is not None else 0

    job_id = submit("steps=300&step_seconds=0.02")
    attempt = at_step(pool, job_id, 5)
    before = dropped()
    client = Celery(broker=broker)
    queue = gpu_of(attempt).queue
    other = next(gpu.queue for gpu in gpus() if gpu.queue != queue)
    for to in (queue, other):
        for fence in (attempt.fence, attempt.fence - 1, attempt.fence + 7):
            client.send_task("celora.train", [job_id, fence], queue=to)
    client.send_task("celora.evaluate", [job_id, attempt.fence], queue=other)
    client.send_task("celora.train", ["ftjob-none", 1], queue=other)
    wait_for(pool, "the idle slot dropped its tickets", lambda: dropped() >= before + 5, 15)
    in_state(pool, job_id, "completed")
    wait_for(pool, "all were dropped", lambda: dropped() >= before + 8, 15)
    assert outcomes(job_id) == ["completed"]
    client.close()


def test_a_second_worker_of_a_device_is_refused(pool: Stack) -> None:
    environment = os.environ | pool.environment
    second = subprocess.run(
        [sys.executable, "-m", "celora", "gpu-worker", "--devices", "cpu:2"],
        env=environment,
        cwd=pool.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = second.stdout + second.stderr
    assert second.returncode == 5, said
    assert "is served already by gpu0@" in said
    assert "Traceback" not in said
    assert words() == ["free", "free"]


def test_a_killed_worker_takes_its_trainer_along_and_the_job_is_placed_again(pool: Stack) -> None:
    job_id = submit("steps=200&step_seconds=0.02&checkpoint_every=10&children=1")
    attempt = at_step(pool, job_id, 15)
    trainer = trainer_of(attempt)
    forked = trainer.children()
    child, main = family(trainer)
    main.kill()
    wait_for(pool, "the trainer is dead", lambda: is_gone(trainer) and is_gone(child), 5)
    in_state(pool, job_id, "completed", seconds=60)
    assert outcomes(job_id) == ["lost", "completed"]
    assert (tries(job_id)[1].start_step or 0) >= 10
    # The new worker found the data loader that its predecessor's trainer had left behind.
    wait_for(pool, "what it forked is dead", lambda: all(map(is_gone, forked)), 5)
    wait_for(pool, "both slots are free", lambda: words() == ["free", "free"], 30)


def test_a_killed_pool_child_is_replaced_and_the_job_runs_again(pool: Stack) -> None:
    job_id = submit("steps=200&step_seconds=0.02&checkpoint_every=10")
    trainer = trainer_of(at_step(pool, job_id, 15))
    child, main = family(trainer)
    child.kill()
    in_state(pool, job_id, "completed", seconds=60)
    assert main.is_running()
    assert is_gone(trainer)
    assert outcomes(job_id) == ["lost", "completed"]


def test_terminate_over_the_broker_cancels_the_job(pool: Stack, broker: str) -> None:
    job_id = submit("steps=100000&step_seconds=0.01")
    attempt = at_step(pool, job_id, 5)
    trainer = trainer_of(attempt)
    client = Celery(broker=broker)
    worker = gpu_of(attempt).worker
    active = client.control.inspect([worker], timeout=5).active()
    (task,) = active[worker]
    client.control.revoke(task["id"], terminate=True)
    in_state(pool, job_id, "cancelled", seconds=15)
    assert is_gone(trainer)
    assert outcomes(job_id) == ["lost"]
    wait_for(pool, "both slots are free", lambda: words() == ["free", "free"], 30)
    client.close()


def test_unknown_messages_are_counted(pool: Stack, broker: str) -> None:
    client = Celery(broker=broker)
    client.send_task("somebody.elses", queue="celora.cpu")

    def counted() -> bool:
        with transaction() as session:
            return session.get(Counter, "unknown_tasks") is not None

    wait_for(pool, "it was counted", counted, 15)
    client.close()


def test_submit_over_the_broker(pool: Stack, broker: str) -> None:
    client = Celery(broker=broker, backend="rpc://")
    spec = {"base_model": "scripted:?steps=3", "dataset": "none"}
    result = client.send_task("celora.submit", [spec])
    job_id = result.get(timeout=20)
    assert job(job_id).idempotency_key == result.id
    in_state(pool, job_id, "completed")
    wrong = client.send_task("celora.submit", [spec | {"rank": 0}], {"tenant": "default"})
    with pytest.raises(ValueError, match="rank"):
        wrong.get(timeout=20)
    client.close()


def test_sigterm_drains_with_a_checkpoint_and_the_job_goes_on_elsewhere(pool: Stack) -> None:
    job_id = submit("steps=400&step_seconds=0.02&checkpoint_every=1000")
    attempt = at_step(pool, job_id, 10)
    trainer = trainer_of(attempt)
    began = time.monotonic()
    assert pool.stop(gpu_worker(pool)) == 0
    assert time.monotonic() - began < 8
    assert is_gone(trainer)
    assert outcomes(job_id) == ["drained"]
    waiting = job(job_id)
    assert (waiting.state, waiting.losses) == ("queued", 0)
    assert words() == ["stale", "stale"]
    with transaction() as session:
        saved = products.newest_checkpoint(session, job_id)
    assert saved is not None
    start_gpu_worker(pool)
    in_state(pool, job_id, "completed")
    assert [one.start_step for one in tries(job_id)] == [None, saved.step]


def test_a_killed_launcher_lets_its_workers_drain(pool: Stack) -> None:
    job_id = submit("steps=400&step_seconds=0.02&checkpoint_every=1000")
    trainer = trainer_of(at_step(pool, job_id, 10))
    pool.kill(gpu_worker(pool))
    wait_for(pool, "the trainer is gone", lambda: is_gone(trainer), 15)
    wait_for(pool, "the attempt is drained", lambda: outcomes(job_id) == ["drained"], 15)
    with transaction() as session:
        assert products.newest_checkpoint(session, job_id) is not None

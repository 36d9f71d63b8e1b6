"""Two CPU slots, RabbitMQ, Postgres and real processes; jobs play a script instead of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.queries import history, jobs, products
from models.session import transaction
from models.states import StopReason
from models.tables import Counter
from tests.foreign_app import foreign_app
from tests.scripted_jobs import (
    FAST,
    at_step,
    gpu_of,
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


def test_terminate_over_the_broker_cancels_the_job(pool: Stack, broker: str) -> None:
    job_id = submit("steps=100000&step_seconds=0.01")
    attempt = at_step(pool, job_id, 5)
    trainer = trainer_of(attempt)
    with foreign_app(broker) as client:
        worker = gpu_of(attempt).worker
        active = client.control.inspect([worker], timeout=5).active()
        (task,) = active[worker]
        client.control.revoke(task["id"], terminate=True)
    in_state(pool, job_id, "cancelled", seconds=15)
    assert is_gone(trainer)
    assert outcomes(job_id) == ["lost"]
    wait_for(pool, "both slots are free", lambda: words() == ["free", "free"], 30)


def test_unknown_messages_are_counted(pool: Stack, broker: str) -> None:
    with foreign_app(broker) as client:
        client.send_task("somebody.elses", queue="celora.cpu")

    def counted() -> bool:
        with transaction() as session:
            return session.get(Counter, "unknown_tasks") is not None

    wait_for(pool, "it was counted", counted, 15)


def test_submit_over_the_broker(pool: Stack, broker: str) -> None:
    spec = {"base_model": "scripted:?steps=3", "dataset": "none"}
    with foreign_app(broker, backend="rpc://") as client:
        result = client.send_task("celora.submit", [spec])
        job_id = result.get(timeout=20)
        assert job(job_id).idempotency_key == result.id
        in_state(pool, job_id, "completed")
        wrong = client.send_task("celora.submit", [spec | {"rank": 0}], {"tenant": "default"})
        with pytest.raises(ValueError, match="rank"):
            wrong.get(timeout=20)

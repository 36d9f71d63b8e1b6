"""A host whose clock is wrong, and one that was started anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from gpu_worker import tether
from models.session import transaction
from models.tables import Attempt, Gpu
from tests.conftest import unavailable
from tests.faults.conftest import Observe
from tests.scripted_jobs import (
    FAST,
    at_step,
    family,
    gpu_worker,
    gpus,
    in_state,
    is_gone,
    outcomes,
    start_gpu_worker,
    steps_once,
    submit,
    trainer_of,
    tries,
    words,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker

LEASE = float(FAST["CELORA_LEASE_SECONDS"])
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of whoever preloads it."""
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("there is no C compiler to build the wrong clock with")
    library = tmp_path_factory.mktemp("clock") / "wrong_clock.so"
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run(
        [str(compiler), "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        check=True,
    )
    return library


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    """No GPU worker yet."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    return stack


@pytest.mark.fault(21)
@pytest.mark.slow
@pytest.mark.parametrize("wrong_by", ["3600", "-3600"])
def test_a_wrong_clock_ends_no_lease_early_or_late(
    pool: Stack, clock: Path, wrong_by: str, observe: Observe
) -> None:
    wrong = {"LD_PRELOAD": str(clock), "WRONG_CLOCK_SECONDS": wrong_by}
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env=os.environ | wrong,
        capture_output=True,
        check=True,
    )
    assert float(said.stdout) - time.time() == pytest.approx(float(wrong_by), abs=60)
    worker = start_gpu_worker(pool, 1, **wrong)
    # Twice as long as a lease: it is renewed, and neither side takes it for over.
    job_id = submit(f"steps={int(2 * LEASE / 0.05)}&step_seconds=0.05&checkpoint_every=10")
    trainer = trainer_of(at_step(pool, job_id, 20))
    _, main = family(trainer)
    assert main.environ()["WRONG_CLOCK_SECONDS"] == wrong_by
    pool.wait_until("a lease's length has passed", lambda: age(job_id) > 1.2 * LEASE)
    assert outcomes(job_id) == [None]
    # Now nobody renews it.
    stopped = [trainer, *family(trainer), psutil.Process(worker.pid)]
    for process in stopped:
        process.suspend()
    until = tries(job_id)[0].lease_until
    pool.wait_until("the lease ran out", lambda: outcomes(job_id) == ["lost"], seconds=2 * LEASE)
    ended = tries(job_id)[0].ended_at
    assert until is not None
    assert ended is not None
    late = (ended - until).total_seconds()
    assert 0 <= late < 2 + float(FAST["CELORA_POLL_SECONDS"])
    observe("seconds from the lease's end to its being ended", late)
    for process in reversed(stopped):
        process.resume()
    in_state(pool, job_id, "completed", seconds=60)
    pool.stop(worker)


@pytest.mark.fault(25)
def test_after_a_reboot_the_job_is_placed_again_and_a_reused_pid_is_left_alone(
    pool: Stack, tmp_path: Path, observe: Observe
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None or not LAST_PID.exists():
        unavailable("another boot id and a chosen pid take root")
    start_gpu_worker(pool, 1)
    job_id = submit("steps=300&step_seconds=0.02&checkpoint_every=10&children=1")
    attempt = at_step(pool, job_id, 25)
    trainer = trainer_of(attempt)
    before = boot_id_on_record()
    assert before == BOOT_ID.read_text().strip()
    # A host goes down with all that runs there.
    launcher = gpu_worker(pool)
    host = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    for process in host:
        process.suspend()
    for process in host:
        process.kill()
    pool.running.remove(launcher)
    launcher.process.wait()
    pool.wait_until("all are dead", lambda: all(map(is_gone, host)), seconds=10)
    stranger = process_with(trainer.pid)
    try:
        # It comes up with another boot id.
        other = tmp_path / "boot_id"
        other.write_text("11111111-2222-4333-8444-555555555555\n")
        began = time.monotonic()
        command = tether.command("celora", "gpu-worker", "--devices", "cpu:1")
        mount = f'mount --bind {other} {BOOT_ID} && exec "$0" "$@"'
        pool.start_program(["unshare", "--mount", "sh", "-c", mount, *command], "gpu-worker")
        in_state(pool, job_id, "completed", seconds=90)
        observe("seconds from the new start to the job's end", time.monotonic() - began)
        assert boot_id_on_record() == other.read_text().strip() != before
        assert outcomes(job_id) == ["lost", "completed"]
        assert (tries(job_id)[1].start_step or 0) >= 20
        steps_once(job_id, 300)
        assert stranger.poll() is None
        observe("the process that has the old trainer's pid", "lives")
    finally:
        stranger.kill()
        stranger.wait()
    assert words() == ["free"]


def age(job_id: str) -> float:
    """Seconds since the claim, by the database's clock."""
    with transaction() as session:
        found = session.scalar(
            select(func.extract("epoch", func.clock_timestamp() - Attempt.claimed_at)).where(
                Attempt.job_id == job_id, Attempt.gpu_id.is_not(None)
            )
        )
    return float(found or 0)


def boot_id_on_record() -> str:
    (gpu,) = gpus()
    with transaction() as session:
        return session.scalars(select(Gpu.boot_id).where(Gpu.id == gpu.id)).one()


def process_with(pid: int) -> subprocess.Popen[bytes]:
    """A process of no concern to us, with the pid of one that is gone."""
    for _ in range(200):  # another process of the machine may be quicker, or its parent not yet
        if psutil.pid_exists(pid):
            time.sleep(0.05)
            continue
        LAST_PID.write_text(str(pid - 1))
        started = subprocess.Popen(["sleep", "600"])
        if started.pid == pid:
            return started
        started.kill()
        started.wait()
    pytest.fail(f"pid {pid} was not to be had")

"""The scripted trainer over real pipes: what it says, how it stops, how it dies."""

from __future__ import annotations

import json
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from gpu_worker import locks, processes
from gpu_worker.devices import Device
from gpu_worker.protocol import (
    BaseChecked,
    CheckpointSaved,
    Evaluated,
    Failed,
    Metrics,
    Ready,
    Replace,
    Run,
    Started,
    Stop,
    Stopped,
    Trained,
)
from gpu_worker.trainer_process import SCRIPTED_MODULE, Died, Line, TrainerProcess

T = TypeVar("T")
CORE = min(os.sched_getaffinity(0))
DEVICE = Device(0, "cpu-unit-0", "cpu", "cpu (1 thread)", 1 << 30, (CORE,))


class Talk:
    """A trainer process and all it said, in order."""

    def __init__(self, lock_fd: int | None = None) -> None:
        self.said: queue.Queue[object] = queue.Queue()
        self.seen: list[object] = []
        self.process = TrainerProcess(SCRIPTED_MODULE, DEVICE, lock_fd=lock_fd)
        self.process.listener = self.said.put

    def until(self, kind: type[T], seconds: float = 10) -> T:
        deadline = time.monotonic() + seconds
        while True:
            message = self.said.get(timeout=max(0.01, deadline - time.monotonic()))
            self.seen.append(message)
            if isinstance(message, kind):
                return message
            assert not isinstance(message, Died), f"died before it said {kind.__name__}"


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def start(lock_fd: int | None = None) -> Talk:
        talks.append(Talk(lock_fd))
        return talks[-1]

    yield start
    for one in talks:
        assert one.process.kill()


def run(output: Path, script: str, **fields: object) -> Run:
    spec = {"base_model": f"scripted:?{script}", "checkpoint_every_steps": 200}
    given = {
        "job_id": "ftjob-unit",
        "fence": 1,
        "stage": "train",
        "spec": spec,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "base_path": "",
        "base_name": "scripted:",
        "base_revision": "",
        "prepared_path": "",
        "output_path": str(output),
    }
    return Run.model_validate(given | fields)


def test_trains_and_evaluates_in_one_process(talk: Callable[..., Talk], tmp_path: Path) -> None:
    began = time.monotonic()
    trainer = talk()
    trainer.until(Ready)
    assert time.monotonic() - began < 2  # 0.1 s alone; the machine is shared
    trainer.process.send(run(tmp_path, "steps=6&step_seconds=0&checkpoint_every=2"))
    trained = trainer.until(Trained)
    assert trained.step == 6
    saved = [m for m in trainer.seen if isinstance(m, CheckpointSaved)]
    assert [m.step for m in saved] == [2, 4]
    assert json.loads((Path(saved[0].path) / "state.json").read_text())["step"] == 2
    points = [p for m in trainer.seen if isinstance(m, Metrics) for p in m.points]
    assert [p.step for p in points if p.name == "train_loss"] == [1, 2, 3, 4, 5, 6]

    trainer.process.send(run(tmp_path, "eval_seconds=0", stage="evaluate"))
    assert trainer.until(BaseChecked).warm
    evaluated = trainer.until(Evaluated)
    assert (evaluated.tuned.exact_match or 0) > (evaluated.base.exact_match or 0)
    assert not evaluated.base_cached


def test_stops_with_a_checkpoint_and_resumes_from_it(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path / "1", "steps=1000&step_seconds=0.01"))
    trainer.until(Metrics)
    trainer.process.send(Stop(reason="pause"))
    saved = trainer.until(CheckpointSaved)
    stopped = trainer.until(Stopped)
    assert stopped.checkpoint_step == stopped.step == saved.step
    again = run(tmp_path / "2", f"steps={saved.step + 2}&step_seconds=0", resume_from=saved.path)
    trainer.process.send(again)
    assert trainer.until(Started).start_step == saved.step
    assert trainer.until(Trained).trained_tokens == 100 * (saved.step + 2)


def test_a_cancelled_run_writes_no_checkpoint(talk: Callable[..., Talk], tmp_path: Path) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, "steps=1000&step_seconds=0.01"))
    trainer.until(Metrics)
    trainer.process.send(Stop(reason="cancel"))
    assert trainer.until(Stopped).checkpoint_step is None
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("fail_at=2", "training_failed"),
        ("nan_at=2", "non_finite_loss"),
        ("oom_at=2", "out_of_memory"),
    ],
)
def test_fails_as_told(talk: Callable[..., Talk], tmp_path: Path, script: str, code: str) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, f"{script}&step_seconds=0"))
    failed = trainer.until(Failed)
    assert failed.error["code"] == code
    assert failed.out_of_memory == (code == "out_of_memory")
    assert failed.step == 1


def test_a_torn_checkpoint_is_an_error_and_not_a_fresh_start(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    (tmp_path / "state.json").write_text('{"step": 1')
    trainer = talk()
    trainer.process.send(run(tmp_path / "out", "steps=3", resume_from=str(tmp_path)))
    assert "cannot be read" in trainer.until(Failed).error["message"]


def test_asks_to_be_replaced_and_leaves(talk: Callable[..., Talk], tmp_path: Path) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, "steps=1&step_seconds=0&fresh=1"))
    trainer.until(Trained)
    trainer.process.send(run(tmp_path, "steps=1&fresh=1"))
    trainer.until(Replace)
    assert trainer.until(Died).code == 0


def test_kill_ends_a_hanging_run_and_all_it_forked(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, "hang_at=3&children=2&step_seconds=0"))
    trainer.until(Metrics)
    assert len(processes.session_members(trainer.process.pid)) == 3
    began = time.monotonic()
    assert trainer.process.kill()
    assert time.monotonic() - began < 2
    assert processes.session_members(trainer.process.pid) == []
    died = trainer.until(Died)
    assert (died.code, died.killed, died.empty) == (-signal.SIGKILL, True, True)


def test_children_of_a_killed_trainer_die_before_its_death_is_told(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, "exit_at=3&children=2&step_seconds=0"))
    died = trainer.until(Died)
    assert (died.code, died.killed, died.empty) == (-signal.SIGKILL, False, True)
    assert processes.session_members(trainer.process.pid) == []


def test_printed_lines_are_captured_and_break_nothing(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    trainer = talk()
    trainer.process.send(run(tmp_path, "steps=2&noise=50&step_seconds=0"))
    trainer.until(Trained)
    trainer.process.leave()
    trainer.until(Died)
    lines = [line.text for line in trainer.seen if isinstance(line, Line)]
    assert lines == [f"noise {number}" for number in range(50)]


def test_an_idle_trainer_leaves_when_its_input_ends(talk: Callable[..., Talk]) -> None:
    trainer = talk()
    trainer.until(Ready)
    trainer.process.leave()
    died = trainer.until(Died)
    assert (died.code, died.killed) == (0, False)


def test_the_trainer_gets_no_credentials_and_its_own_cores(
    talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("CELORA_DATABASE_URL", "CELORA_BROKER_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "secret-value")
    trainer = talk()
    trainer.until(Ready)
    environment = Path(f"/proc/{trainer.process.pid}/environ").read_text()
    assert "secret-value" not in environment
    assert "OMP_NUM_THREADS=1" in environment.split("\0")
    assert os.sched_getaffinity(trainer.process.pid) == {CORE}
    assert os.getsid(trainer.process.pid) == trainer.process.pid


def test_the_device_lock_is_held_while_the_trainer_lives(
    talk: Callable[..., Talk], tmp_path: Path
) -> None:
    path = tmp_path / "gpu.trainer"
    held = locks.take(path)
    assert held is not None
    trainer = talk(held)
    trainer.until(Ready)
    os.close(held)
    assert locks.take(path) is None
    assert processes.holders(path) == [trainer.process.pid]
    assert processes.end_holders(path, seconds=5)
    again = locks.take(path)
    assert again is not None
    os.close(again)
    trainer.until(Died)

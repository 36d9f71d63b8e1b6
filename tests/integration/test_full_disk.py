"""A disk that is really full stops the job that hit it, says which path, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_worker import locks
from gpu_worker.checkpoints import CheckpointKeeper
from gpu_worker.lease import Lease, now
from gpu_worker.protocol import CheckpointSaved
from gpu_worker.session import WorkerSession
from models import disk, store
from models.errors import SetupError
from models.queries import history
from models.session import transaction
from models.settings import settings
from tasks.preparation import prepare_job
from tests import records, stored
from tests.environment import variables
from tests.small_disk import fill, small_disk


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 2) as folder:
        yield folder


def rows(path: Path, count: int = 60) -> Path:
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(count))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("room_bytes", [0, 20_000])
def test_a_preparation_fails_with_the_path_and_the_worker_takes_the_next(
    small: Path, base: Path, tmp_path: Path, room_bytes: int
) -> None:
    """With no room at all not even the scratch folder; with some, in the middle of its files."""
    records.clear()
    data = rows(tmp_path / "rows.jsonl", 3000)
    with variables(CELORA_HOME=str(tmp_path / "home"), CELORA_ARTIFACTS=str(small / "artifacts")):
        worker = WorkerSession("cpu@host")
        ballast = fill(small, leave_bytes=room_bytes)
        job_id = records.submit(base_model=str(base), dataset=str(data), max_sequence_length=64)
        records.place_preparation()
        assert not prepare_job(worker, job_id, records.job(job_id).fence)
        failed = records.job(job_id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert (failed.error["code"], failed.error["message"]) == ("setup", "the disk is full")
        assert failed.error["where"].startswith(f"{small}/artifacts")
        assert "celora storage" in failed.error["remedy"]
        assert not list((small / "artifacts").rglob("*.arrow"))  # what it took is free again

        ballast.unlink()
        job_id = records.submit(base_model=str(base), dataset=str(data), max_sequence_length=64)
        records.place_preparation()
        assert prepare_job(worker, job_id, records.job(job_id).fence)


def test_half_a_copy_takes_no_room(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"x" * 2**22)
    for copy in (store.upload, store.place):  # the latter by a copy, too: another file system
        with pytest.raises(SetupError, match="the disk is full") as caught:
            copy(folder, str(small / "there"))
        assert str(small) in str(caught.value)
        assert list(small.iterdir()) == []


def test_half_a_download_takes_no_room(small: Path, tmp_path: Path) -> None:
    with stored.artifacts("memory", tmp_path) as url:
        stored.put(f"{url}/checkpoint", 2**22)
        with pytest.raises(SetupError, match="the disk is full") as caught:
            store.download(f"{url}/checkpoint", small / "work" / "checkpoint")
        assert str(small) in str(caught.value)
        assert list((small / "work").iterdir()) == []


@pytest.mark.usefixtures("database")
def test_a_checkpoint_that_finds_no_room_in_the_store_is_told_and_the_run_goes_on(
    small: Path, tmp_path: Path
) -> None:
    records.clear()
    with variables(CELORA_HOME=str(tmp_path / "home"), CELORA_ARTIFACTS=str(small)):
        claim = records.running()
        lease = Lease(
            claim.attempt_id,
            claim_sent_at=now(),
            on_stop=lambda _: None,
            on_lost=lambda _: None,
        )
        keeper = CheckpointKeeper(claim.job_id, claim.fence, lease, flush=lambda: None)
        for step, size_bytes in ((5, 2**22), (10, 100)):
            folder = tmp_path / f"step-{step}"
            folder.mkdir()
            (folder / "weights").write_bytes(b"x" * size_bytes)
            keeper.add(
                CheckpointSaved(
                    step=step, path=str(folder), size_bytes=size_bytes, trained_tokens=1, metrics={}
                )
            )
        done = threading.Event()
        assert keeper.then(done.set)
        assert done.wait(30)
        lease.close()
        assert keeper.registered_step == 10
        with transaction() as session:
            told = [
                event.message
                for event in history.events_of(session, claim.job_id)
                if event.kind == "checkpoint_failed"
            ]
        assert len(told) == 1
        assert f"the checkpoint of step 5 was not kept: {small}" in told[0]
        assert "the disk is full" in told[0]


def test_a_lock_is_taken_though_nobody_can_be_noted_in_it(small: Path) -> None:
    path = small / "device.trainer"
    path.touch()
    fill(small)
    descriptor = locks.take(path)
    assert descriptor is not None
    locks.note(descriptor, "gpu0@host pid 1\n")
    assert locks.noted(path) == ""
    os.close(descriptor)


def test_a_launcher_whose_log_lies_on_a_full_disk_goes_on(small: Path) -> None:
    log = small / "log"
    with log.open("wb") as output:
        fill(small)
        code = (
            "from gpu_worker.launcher import say; say('x' * 9000); say('y'); import os; os._exit(3)"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=output, check=False)
    assert done.returncode == 3
    assert log.stat().st_size == 0


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("the disk of a clutch"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool) -> None:  # noqa: FBT001
    assert disk.is_full(error) is full


def test_the_path_that_the_error_names_is_the_one_that_is_told(tmp_path: Path) -> None:
    error = OSError(28, "No space left on device", str(tmp_path / "file"))
    assert disk.full(error, "elsewhere").where == str(tmp_path / "file")
    assert disk.full(OSError(28, "full"), settings().at_home()).where == str(settings().at_home())

"""Which devices a machine trains on, and how one is pinned and locked."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpu_worker import locks
from gpu_worker.devices import Device, decode, discover
from models.errors import InputError, SetupError
from tests.environment import variables

CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_cpu_slots_share_the_cores_among_them(count: int) -> None:
    slots = discover(f"cpu:{count}")
    assert [slot.index for slot in slots] == list(range(count))
    assert len({slot.uuid for slot in slots}) == count
    used = [core for slot in slots for core in slot.cores]
    assert all(slot.cores for slot in slots)
    assert set(used) <= set(CORES)
    if count <= len(CORES):
        assert sorted(used) == CORES  # every core in exactly one slot


def test_a_slot_pins_threads_and_hides_cards() -> None:
    slot = Device(0, "cpu-h-0", "cpu", "cpu (2 threads)", 1, (4, 5))
    environment = slot.environment()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_card_is_pinned_by_its_uuid() -> None:
    card = Device(3, "GPU-8a1f", "cuda", "NVIDIA H100", 80 << 30)
    assert card.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-8a1f"


def test_a_device_survives_the_environment() -> None:
    for device in discover("cpu:2"):
        assert decode(device.encode()) == device


@pytest.mark.parametrize("wanted", ["gpu", "cuda", "cpu:", "cpu:0", "cuda:0,disk:1", "", "cpu:-1"])
def test_other_text_is_refused_with_a_remedy(wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        discover(wanted)
    assert "nvidia-smi" in str(caught.value)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("wanted", ["all", "cuda:0", "cuda:0,cuda:2"])
def test_a_device_that_is_not_there_is_a_setup_error(wanted: str) -> None:
    with pytest.raises(SetupError) as caught:
        discover(wanted)
    assert caught.value.remedy


def test_slots_of_two_hosts_on_one_machine_differ() -> None:
    with variables(CELORA_HOST="one"):
        one = discover("cpu:1")[0]
    with variables(CELORA_HOST="two"):
        two = discover("cpu:1")[0]
    assert one.uuid != two.uuid


def test_a_lock_has_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "gpu.worker"
    first = locks.take(path)
    assert first is not None
    locks.note(first, "gpu0@here (pid 7)\n")
    assert locks.take(path) is None
    assert locks.noted(path) == "gpu0@here (pid 7)\n"
    os.close(first)
    second = locks.take(path)
    assert second is not None
    os.close(second)


def test_a_lock_follows_no_planted_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "gpu.worker").symlink_to(target)
    with pytest.raises(SetupError):
        locks.take(tmp_path / "gpu.worker")
    assert target.read_text() == "precious"


def test_locks_of_cards_lie_where_every_user_of_the_machine_finds_them(tmp_path: Path) -> None:
    card = Device(0, "GPU-1", "cuda", "card", 1)
    with variables(CELORA_LOCK_FOLDER=str(tmp_path / "locks"), CELORA_HOME=str(tmp_path / "home")):
        path = locks.worker_lock(card)
        descriptor = locks.take(path)
        assert descriptor is not None
        os.close(descriptor)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o1777
        slot = Device(0, "cpu-1", "cpu", "slot", 1, (0,))
        assert locks.worker_lock(slot).is_relative_to(tmp_path / "home")

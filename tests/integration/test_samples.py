"""What devices are doing: sampled from real processes, recorded, thinned as it ages."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from gpu_worker.devices import Device
from gpu_worker.samples import Sampler
from models.queries import samples
from models.queries.clock import database_time
from models.session import transaction
from models.tables import GpuSample
from tests import records
from tests.records import add_gpu

pytestmark = pytest.mark.usefixtures("database", "_empty")

SLOT = Device(0, "cpu-host-0", "cpu", "cpu (1 thread)", 2**30, cores=(0,))
BUSY = "block = b'x' * 50_000_000\nprint(flush=True)\nwhile True: pass"


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()
    with transaction() as session:
        session.execute(text("DELETE FROM gpu_samples"))


def test_a_slot_is_as_busy_as_its_trainer() -> None:
    sampler = Sampler(SLOT)
    assert sampler.take(None).utilisation_percent == 0
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, start_new_session=True
    ) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        deadline = time.monotonic() + 20
        while not (sampler.take(trainer.pid).utilisation_percent or 0) > 5:
            assert time.monotonic() < deadline
        taken = sampler.take(trainer.pid)
        trainer.kill()
    assert (taken.memory_used_bytes or 0) > 50_000_000
    assert taken.power_watts is None


def test_a_card_that_is_not_there_tells_nothing() -> None:
    taken = Sampler(Device(0, "GPU-none", "cuda", "H100", 2**30)).take(None)
    assert taken.utilisation_percent is None


def record(gpu_id: int, age: str, utilisation: float) -> None:
    with transaction() as session:
        session.execute(
            text(
                "INSERT INTO gpu_samples (gpu_id, sampled_at, utilisation_percent)"
                " VALUES (:gpu_id, date_trunc('minute', now()) - CAST(:age AS interval), :value)"
            ),
            {"gpu_id": gpu_id, "age": age, "value": utilisation},
        )


def kept() -> list[float | None]:
    with transaction() as session:
        rows = session.query(GpuSample).order_by(GpuSample.sampled_at).all()
        return [row.utilisation_percent for row in rows]


def test_old_samples_are_thinned_to_one_a_minute_and_then_deleted() -> None:
    gpu_id = add_gpu()
    record(gpu_id, "40 days", 1)
    record(gpu_id, "2 days", 2)
    record(gpu_id, "2 days -10 seconds", 3)  # the same minute, later
    record(gpu_id, "2 days -70 seconds", 4)
    record(gpu_id, "10 seconds", 5)
    record(gpu_id, "5 seconds", 6)
    with transaction() as session:
        assert samples.thin_samples(session) == 2
        assert session.scalar(text("SHOW statement_timeout")) == "5min"  # else the sweep ends here
    assert kept() == [2, 4, 5, 6]
    with transaction() as session:
        assert samples.thin_samples(session) == 0


def test_a_sample_is_recorded_and_found_in_its_time() -> None:
    gpu_id = add_gpu()
    with transaction() as session:
        before = database_time(session)
        samples.record_sample(
            session,
            gpu_id,
            utilisation_percent=50.0,
            memory_used_bytes=2**40,
            temperature_celsius=None,
            power_watts=99.5,
        )
        after = database_time(session)
    with transaction() as session:
        (row,) = samples.samples_between(session, gpu_id, before, after)
        assert (row.utilisation_percent, row.memory_used_bytes, row.power_watts) == (
            50.0,
            2**40,
            99.5,
        )

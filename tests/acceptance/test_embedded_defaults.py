"""`celora up` with nothing set: its own Postgres, a folder as broker, one real job, a clean end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from models.settings import Settings
from tests.environment import variables
from tests.stack import Stack

# The demo and `celora up` run on the same defaults in the quicker tests.
pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture
def embedded() -> Iterator[Stack]:
    # A short path: the folder of the database's socket must fit into a socket address.
    folder = Path(tempfile.mkdtemp(prefix="celora-up-"))
    environment = {"CELORA_HOME": str(folder / "home"), "CELORA_LOCK_FOLDER": str(folder / "locks")}
    stack = Stack(folder, environment)
    with variables(**environment):
        server = Settings().embedded_postgres
        yield stack
        stack.close()
    shutil.rmtree(folder)
    if server.is_dir():  # as root it lies outside of home
        shutil.rmtree(server)


def test_a_job_runs_on_the_embedded_defaults(embedded: Stack, tmp_path: Path) -> None:
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"instruction": f"add {n} and 1", "output": str(n + 1)}) for n in range(60)
        )
    )
    up = embedded.start("up", "--devices", "cpu:1")
    embedded.wait_until("celora up is ready", lambda: "ready" in up.said(), seconds=120)

    done = embedded.run(
        "submit", "--base-model", str(base), "--dataset", str(rows), "--method", "lora",
        "--max-steps", "4", "--eval-generate-rows", "2", "--eval-max-new-tokens", "4",
        "--max-sequence-length", "128", "--wait", "--json",
    )  # fmt: skip
    job = json.loads(done.stdout)
    assert job["state"] == "completed"
    assert Path(job["adapter_url"]).is_dir()

    children = psutil.Process(up.pid).children(recursive=True)
    assert embedded.stop(up, seconds=60) == 0
    assert [child for child in children if child.is_running()] == []
    data = Settings().embedded_postgres / "data"
    assert not (data / "postmaster.pid").exists(), "the database was not stopped"
    assert any((embedded.folder / "home" / "logs").iterdir())

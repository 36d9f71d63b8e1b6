"""`celora up` with a Postgres and a RabbitMQ that were there before."""

from __future__ import annotations

import json
from pathlib import Path

from models.settings import Settings
from tests.stack import Stack


def test_nothing_is_embedded(stack: Stack) -> None:
    up = stack.start("up", "--devices", "cpu:1")
    stack.wait_until("celora up is ready", lambda: "\nready" in up.said(), seconds=120)
    assert "PostgreSQL" not in up.said()
    assert not Settings().embedded_postgres.exists()
    assert not (Path(stack.environment["CELORA_HOME"]) / "broker").exists()
    done = stack.run(
        "submit", "--base-model", "scripted:?steps=3&step_seconds=0.01", "--dataset", "none",
        "--wait", "--json",
    )  # fmt: skip
    assert json.loads(done.stdout)["state"] == "completed"
    assert stack.stop(up, seconds=60) == 0

"""The servers that the other tests stand on: found or started, private, and swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kombu
import pytest

from tests.postgres_server import PostgresServer
from tests.rabbitmq_server import RabbitServer
from tests.run_token import is_left_over, run_name


def test_a_killed_run_is_known_by_its_names() -> None:
    assert not is_left_over(run_name("1"))
    made = subprocess.run(
        [sys.executable, "-c", "from tests.run_token import run_name; print(run_name('1'))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.strip()
    assert is_left_over(made)  # its process has ended
    assert not is_left_over("celora_test_00000000_1_1_1")  # another host's
    assert not is_left_over("production")


def test_databases_of_killed_runs_are_dropped_and_no_others(postgres: PostgresServer) -> None:
    ours = run_name("kept")
    left = run_name("left").replace(f"_{os.getpid()}_", "_4194305_")  # above the largest pid
    for name in (ours, left):
        postgres.create(name)
    try:
        postgres.sweep()
        with postgres.connect() as connection:
            names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        assert ours in names
        assert left not in names
    finally:
        postgres.drop(ours)


@pytest.mark.broker
def test_a_vhost_takes_messages_and_is_gone_after(rabbitmq: RabbitServer) -> None:
    with rabbitmq.vhost(run_name("vhost")) as url, kombu.Connection(url) as connection:
        queue = connection.SimpleQueue("celora.cpu")
        queue.put("hello")
        assert queue.get(timeout=5).payload == "hello"
    if rabbitmq.control is not None:
        assert run_name("vhost") not in rabbitmq.control.vhosts()

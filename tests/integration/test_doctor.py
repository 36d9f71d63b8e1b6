"""The doctor: what is well, what is broken, and how to mend it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celora.doctor import Check, Verdict, machine, services, training
from tests import records
from tests.environment import variables

Examiner = Callable[[], Iterator[Check]]


def found(examiner: Examiner) -> dict[str, Check]:
    return {check.name: check for check in examiner()}


def assert_broken(examiner: Examiner, name: str, said: str, remedy: str) -> None:
    check = found(examiner)[name]
    assert check.verdict is Verdict.FAIL
    assert said in check.said
    assert check.remedy is not None
    assert remedy in check.remedy


@pytest.mark.usefixtures("database")
def test_a_database_that_is_well() -> None:
    records.clear()
    checks = found(services.database) | found(services.workers) | found(machine.clock)
    assert checks["database"].verdict is Verdict.OK
    assert checks["migrations"].verdict is Verdict.OK
    assert checks["clock"].verdict is Verdict.OK
    assert checks["gpu workers"].verdict is Verdict.WARN
    records.add_gpu()
    assert found(services.workers)["gpu workers"].said == "1 free"


def test_a_database_without_tables(empty_database: str) -> None:
    with variables(CELORA_DATABASE_URL=empty_database):
        assert_broken(services.database, "migrations", "nothing", "celora db upgrade")


def test_a_database_that_is_away_and_its_password_is_not_told() -> None:
    with variables(CELORA_DATABASE_URL="postgresql+psycopg://me:secret@127.0.0.1:9/db"):
        assert_broken(services.database, "database", "127.0.0.1", "CELORA_DATABASE_URL")
        assert "secret" not in found(services.database)["database"].said
        assert found(services.workers) == {}
        assert found(machine.clock) == {}


def test_the_embedded_database_may_be_down() -> None:
    with variables(CELORA_DATABASE_URL=""):
        check = found(services.database)["database"]
    assert check.verdict is Verdict.WARN
    assert "celora up" in str(check.remedy)


def test_a_broker_that_is_well(broker: str) -> None:
    check = found(services.broker)["broker"]
    assert check.verdict is Verdict.OK
    password = broker.partition("@")[0].rpartition(":")[2]
    assert f":{password}@" not in check.said


def test_a_broker_that_is_away() -> None:
    with variables(CELORA_BROKER_URL="amqp://me:secret@127.0.0.1:9//"):
        assert_broken(services.broker, "broker", "refused", "CELORA_BROKER_URL")
        assert "secret" not in found(services.broker)["broker"].said


def test_a_folder_as_broker(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with variables(CELORA_BROKER_URL=f"filesystem://{tmp_path / 'broker'}"):
        assert found(services.broker)["broker"].verdict is Verdict.OK
    with variables(CELORA_BROKER_URL=f"filesystem://{tmp_path / 'file' / 'broker'}"):
        assert_broken(services.broker, "broker", "Not a directory", "CELORA_BROKER_URL")


def test_an_artifact_store_is_written_to_and_left_clean(tmp_path: Path) -> None:
    with variables(CELORA_ARTIFACTS=str(tmp_path / "store")):
        assert found(services.artifact_store)["artifacts"].verdict is Verdict.OK
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "file").touch()
    with variables(CELORA_ARTIFACTS=str(tmp_path / "file" / "store")):
        assert_broken(services.artifact_store, "artifacts", "cannot be written", "CELORA_ARTIFACTS")


def test_disk_python_and_model_cache() -> None:
    assert found(machine.python)["python"].verdict is Verdict.OK
    assert "GB free" in found(machine.disk)["disk"].said
    assert found(training.model_cache)["model cache"].verdict is Verdict.OK


def test_a_model_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    assert_broken(training.model_cache, "model cache", "may not be written", "HF_HOME")


def test_the_command_tells_all_of_it_and_its_exit_code_what_is_broken() -> None:
    command = [sys.executable, "-m", "celora", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"python", "torch", "database", "broker", "artifacts", "disk"} <= set(checks)
    assert checks["torch"]["verdict"] == "ok"
    broken = [check for check in checks.values() if check["verdict"] == "fail"]
    assert done.returncode == (5 if broken else 0)
    assert all(check["remedy"] for check in checks.values() if check["verdict"] != "ok")

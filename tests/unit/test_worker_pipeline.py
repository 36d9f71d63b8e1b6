"""The chains, the Celery settings, and a folder as broker."""

from __future__ import annotations

import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from gpu_worker.lease import check_settings
from gpu_worker.stage_end import smaller_batch
from models.errors import SetupError
from models.states import Stage
from tasks.app import app
from tasks.broker import broker_settings
from tasks.names import EVALUATE, PREPROCESS, TRAIN
from tasks.pipeline import ticket
from tests.environment import variables


def test_a_gpu_ticket_trains_and_then_evaluates_on_the_same_queue() -> None:
    chain = ticket("ftjob-1", 3, Stage.TRAIN, "celora.gpu.h.0", True)  # noqa: FBT003 (a row's column)
    assert [task.task for task in chain.tasks] == [TRAIN, EVALUATE]
    for task in chain.tasks:
        assert task.args == ("ftjob-1", 3)
        assert task.immutable
        assert task.options["queue"] == "celora.gpu.h.0"


def test_every_task_of_a_chain_shows_whose_it_is() -> None:
    chain = ticket("ftjob-1", 3, Stage.TRAIN, "q", True, shown="physics: lora on x")  # noqa: FBT003 (a row's column)
    for task in chain.tasks:
        assert task.options["argsrepr"] == "ftjob-1, attempt 3"
        assert task.options["kwargsrepr"] == "physics: lora on x"


def test_without_evaluation_training_stands_alone() -> None:
    alone = ticket("ftjob-1", 3, Stage.TRAIN, "celora.gpu.h.0", False)  # noqa: FBT003 (a row's column)
    assert alone.task == TRAIN


def test_a_job_that_has_trained_is_evaluated_alone() -> None:
    assert ticket("ftjob-1", 4, Stage.EVALUATE, "q", True).task == EVALUATE  # noqa: FBT003 (a row's column)


def test_preprocessing_is_published_alone() -> None:
    assert ticket("ftjob-1", 1, Stage.PREPROCESS, "celora.cpu", True).task == PREPROCESS  # noqa: FBT003 (a row's column)


def test_tickets_are_json_and_acknowledged_early() -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert not app.conf.task_acks_late
    assert app.conf.worker_prefetch_multiplier == 1


def test_queues_are_declared_without_arguments() -> None:
    for name in ("celora.cpu", "celery", "celora.gpu.host.0"):
        queue = app.amqp.queues[name]
        assert queue.queue_arguments is None
        assert queue.durable
        assert not queue.auto_delete
        assert queue.routing_key == name  # else a message would reach two queues


def test_a_folder_broker_is_private(tmp_path: Path) -> None:
    settings = broker_settings(f"filesystem://{tmp_path}/broker")
    options = settings["broker_transport_options"]
    assert options["data_folder_in"] == options["data_folder_out"]
    for name in ("data_folder_in", "control_folder", "processed_folder"):
        assert stat.S_IMODE(Path(options[name]).stat().st_mode) == 0o700
    assert settings["broker_url"].startswith("filesystem://")


def _set_up(url: str) -> None:
    broker_settings(url)


def test_processes_that_start_at_once_leave_the_tables_whole(tmp_path: Path) -> None:
    url = f"filesystem://{tmp_path}/broker"
    context = get_context("fork")
    processes = [context.Process(target=_set_up, args=(url,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    tables = list((tmp_path / "broker" / "control").iterdir())
    assert len(tables) == 6
    assert all(table.read_text() == "[]" for table in tables)


def test_a_smaller_micro_batch_keeps_the_effective_batch() -> None:
    assert smaller_batch(4, 16) == 2
    assert smaller_batch(5, 20) == 2
    assert smaller_batch(3, 12) == 1
    assert smaller_batch(6, 18) == 3
    assert smaller_batch(7, 7) == 1
    assert smaller_batch(1, 8) is None


@pytest.mark.parametrize(("lease", "fits"), [("20", False), ("21", True)])
def test_a_lease_that_cannot_be_kept_is_refused(lease: str, fits: bool) -> None:  # noqa: FBT001 (a test's parameter)
    with variables(
        CELORA_LEASE_SECONDS=lease,
        CELORA_RENEW_SECONDS="10",
        CELORA_KILL_MARGIN_SECONDS="10",
    ):
        if fits:
            check_settings()
        else:
            with pytest.raises(SetupError, match="over before it is renewed"):
                check_settings()

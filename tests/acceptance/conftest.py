"""Fixtures of the tests that talk to a real trainer process over its pipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer_driver import Trainer, prepared_data


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_worker.trainer.tiny_base import random_base

    return random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def shared() -> Iterator[list[Trainer]]:
    """One warm process for all tests that leave it in order: starting one takes seconds."""
    running: list[Trainer] = []
    yield running
    for trainer in running:
        trainer.kill()


@pytest.fixture
def warm(shared: list[Trainer]) -> Trainer:
    if not shared or shared[-1].process.poll() is not None:  # a test that failed took it along
        shared.append(Trainer().__enter__())
    shared[-1].forget()
    return shared[-1]

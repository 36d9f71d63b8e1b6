"""What the tests stand on: an environment of their own, and real servers.

    database    a fresh, migrated Postgres database for a test module (CELORA_DATABASE_URL is set)
    empty_database  the same, without a table
    broker      a RabbitMQ vhost for a test module (CELORA_BROKER_URL is set)
    stack       Celora's processes on both, for a test module

CELORA_TEST_DATABASE_URL and CELORA_TEST_BROKER_URL name servers; else the default addresses are
used where they answer; else servers are started. CELORA_TEST_OWN_SERVERS=1 always starts them.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
import pytest

from models.errors import SetupError
from tests import postgres_server, rabbitmq_server
from tests.environment import forget_settings, variables
from tests.postgres_server import PostgresServer
from tests.rabbitmq_server import RabbitServer
from tests.run_token import is_left_over, run_name
from tests.stack import Stack

ROOT = Path(__file__).parents[1]
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the developer's reaches a test, and no test reaches the developer's home."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            ours = name.startswith("CELORA_")
            if ours and not name.startswith(("CELORA_TEST_", "CELORA_SHARED_")):
                patch.delenv(name)
        patch.delenv("COLUMNS", raising=False)  # tables are as wide as they need to be
        home = tmp_path_factory.mktemp("home")
        patch.setenv("CELORA_HOME", str(home / "celora"))
        patch.setenv("HF_HOME", str(home / "huggingface"))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a test that needs a hub starts its own
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.setenv("WANDB_MODE", "offline")
        # Small models on few cores: threads would only fight each other.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        forget_settings()
        yield
    forget_settings()


@pytest.fixture(scope="module", autouse=True)
def _leaks_are_told_where_they_happen() -> Iterator[None]:
    """Else a socket left open by one module is a warning, and so a failure, of another."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with gsm8k-train.jsonl: CELORA_SHARED_DATA, or ../shared/data."""
    folder = Path(os.environ.get("CELORA_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "gsm8k-train.jsonl").is_file():
        unavailable(f"no gsm8k-train.jsonl in {folder}; CELORA_SHARED_DATA names the folder")
    return folder


def unavailable(reason: str) -> None:
    """What this machine cannot give is skipped with its reason; CI has to give everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where servers of our own live: a short path that others may enter (root's Postgres must)."""
    base = Path(tempfile.gettempdir())
    for left in base.glob("celora_test_*"):
        if is_left_over(left.name):
            _end_processes_in(left)
            shutil.rmtree(left, ignore_errors=True)
    folder = base / run_name()
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _end_processes_in(folder: Path) -> None:
    """Kill the servers of a killed run: those that work inside its folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()
                process.wait(5)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[PostgresServer]:
    folder = server_folder / "postgres"
    folder.mkdir(mode=0o755)
    own = os.environ.get("CELORA_TEST_OWN_SERVERS") == "1"
    try:
        with postgres_server.find_or_start(folder, own=own) as server:
            yield server
    except SetupError as error:
        pytest.fail(str(error), pytrace=False)  # the wheel runs everywhere: this is never skipped


@pytest.fixture(scope="session")
def wheel_postgres(server_folder: Path) -> Iterator[PostgresServer]:
    """Always the wheel's PostgreSQL (18): for what must run on more than one version."""
    folder = server_folder / "wheel-postgres"
    folder.mkdir(mode=0o755)
    with postgres_server.own_server(folder) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(server_folder: Path) -> Iterator[RabbitServer]:
    folder = server_folder / "rabbitmq"
    folder.mkdir()
    own = os.environ.get("CELORA_TEST_OWN_SERVERS") == "1"
    try:
        with rabbitmq_server.find_or_start(folder, own=own) as server:
            yield server
    except SetupError as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def template_database(postgres: PostgresServer) -> Iterator[str]:
    """Name of a migrated database that nobody is connected to: copying it takes milliseconds."""
    import migrations

    name = run_name("template")
    migrations.upgrade(postgres.create(name))
    yield name
    postgres.drop(name)


@pytest.fixture(scope="module")
def database(postgres: PostgresServer, template_database: str) -> Iterator[str]:
    with _database(postgres, template=template_database) as url:
        yield url


@pytest.fixture(scope="module")
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    with _database(postgres, template="template0") as url:
        yield url


@contextmanager
def _database(server: PostgresServer, *, template: str) -> Iterator[str]:
    name = run_name(str(next(_numbers)))
    url = server.create(name, template=template)
    with variables(CELORA_DATABASE_URL=url):
        yield url
    server.drop(name)


@pytest.fixture(scope="module")
def broker(rabbitmq: RabbitServer) -> Iterator[str]:
    with (
        rabbitmq.vhost(run_name(str(next(_numbers)))) as url,
        variables(CELORA_BROKER_URL=url),
    ):
        yield url


@pytest.fixture(scope="module")
def stack(
    database: str,
    broker: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    """Nothing runs at first: a test starts what it needs, and `wait_until` it is there."""
    folder = tmp_path_factory.mktemp("stack")
    environment = {
        "CELORA_DATABASE_URL": database,
        "CELORA_BROKER_URL": broker,
        "CELORA_HOME": str(folder / "home"),
        # Queues, workers and GPU locks of its own, whatever else runs on this machine.
        "CELORA_HOST": f"test-{os.getpid()}-{next(_numbers)}",
        "CELORA_LOCK_FOLDER": str(folder / "locks"),
        "CELORA_ALLOW_SCRIPTED": "true",
    }
    failed_before = request.session.testsfailed
    stack = Stack(folder, environment)
    with variables(**environment):
        try:
            yield stack
        finally:
            if request.session.testsfailed > failed_before:
                _print_uncaptured(request.config, stack.logs())
            # That processes leave cleanly is held by tests of its own; here it would take a
            # dozen seconds a module.
            stack.close(seconds=0)


def _print_uncaptured(config: pytest.Config, text: str) -> None:
    """pytest shows what a teardown prints only when the teardown itself fails."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\n{text}")

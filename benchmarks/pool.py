"""The whole product on this machine for a benchmark: real processes, Postgres, RabbitMQ."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url, text

from models.queries.gpus import list_gpus
from models.session import transaction
from tests import postgres_server, rabbitmq_server
from tests.environment import variables
from tests.postgres_server import PostgresServer
from tests.run_token import run_name
from tests.stack import Running, Stack

# One thread a process: the trainers share few cores.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Pool:
    root: Path
    stack: Stack
    dispatcher: Running
    cpu_worker: Running
    gpu_worker: Running

    def wait_until(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        self.stack.wait_until(what, lambda: condition() or None, seconds=seconds)


@contextmanager
def database(name: str) -> Iterator[tuple[PostgresServer, str]]:
    """A migrated scratch database on the server that the tests use; dropped after."""
    import migrations

    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="celora-postgres-")))
        folder.chmod(0o755)  # a server of our own may run as another user
        server = ends.enter_context(postgres_server.find_or_start(folder, own=False))
        url = server.create(run_name(name))
        ends.callback(server.drop, run_name(name))
        migrations.upgrade(url)
        yield server, url


@contextmanager
def running(
    name: str,
    *,
    slots: int,
    preparers: int = 2,
    through: Callable[[str, int], int] | None = None,
) -> Iterator[Pool]:
    """Dispatcher, CPU worker and one GPU worker with that many CPU slots, ready for jobs.

    `through` makes a proxy to the database server (host, port) and returns its port: the processes
    of the pool then use that.
    """
    with ExitStack() as ends:
        root = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix=f"celora-{name}-")))
        root.chmod(0o755)
        servers = root / "rabbitmq"
        servers.mkdir(mode=0o755)
        _, url = ends.enter_context(database(name))
        rabbitmq = ends.enter_context(rabbitmq_server.find_or_start(servers, own=False))
        theirs = make_url(url)
        if through is not None:
            port = through(theirs.host or "127.0.0.1", theirs.port or 5432)
            theirs = theirs.set(host="127.0.0.1", port=port, query={"sslmode": "disable"})
        environment = THREADS | {
            "CELORA_DATABASE_URL": theirs.render_as_string(hide_password=False),
            "CELORA_BROKER_URL": ends.enter_context(rabbitmq.vhost(run_name(name))),
            "CELORA_HOME": str(root / "home"),
            "CELORA_HOST": run_name(name).replace("_", "-"),
            "CELORA_LOCK_FOLDER": str(root / "locks"),
            "CELORA_ALLOW_SCRIPTED": "true",
        }
        ends.enter_context(variables(**environment | {"CELORA_DATABASE_URL": url}))
        stack = Stack(root, environment)
        ends.callback(stack.close)
        pool = Pool(
            root,
            stack,
            stack.start("dispatcher"),
            stack.start("cpu-worker", "--concurrency", str(preparers)),
            stack.start("gpu-worker", "--devices", f"cpu:{slots}"),
        )
        pool.wait_until("the CPU worker is ready", _says(pool.cpu_worker, " ready."), seconds=120)
        pool.wait_until("the slots are free", lambda: free_slots() == slots, seconds=120)
        yield pool


def free_slots() -> int:
    with transaction() as session:
        return sum(gpu.state == "free" for gpu in list_gpus(session))


def unfinished() -> int:
    """Jobs that are not over. Raises SystemExit when one failed."""
    with transaction() as session:
        counts: dict[str, int] = {row[0]: row[1] for row in session.execute(_STATES)}
    if bad := {state: jobs for state, jobs in counts.items() if state in {"failed", "cancelled"}}:
        raise SystemExit(f"jobs did not complete: {bad}")
    return sum(jobs for state, jobs in counts.items() if state != "completed")


def wait_all_done(pool: Pool, *, seconds: float) -> float:
    """Wait until all jobs have completed; returns the time on `time.monotonic()`."""
    pool.wait_until("all jobs have completed", lambda: unfinished() == 0, seconds=seconds)
    return time.monotonic()


_STATES = text("SELECT state, count(*) FROM jobs GROUP BY state")


def _says(running: Running, words: str) -> Callable[[], bool]:
    return lambda: words in running.said()

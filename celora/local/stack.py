"""`celora up`: database, broker, dispatcher and workers on one machine, as one thing to start and
stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from celora.local.broker import prune, prune_at_start
from celora.local.children import Children
from celora.local.home import HomeLock
from celora.local.postgres import EmbeddedPostgres
from gpu_worker.devices import Device, discover
from models.errors import SetupError, UnavailableError
from models.settings import settings
from tasks.broker import FOLDER_SCHEME

READY_SECONDS = 120.0
_PRUNE_SECONDS = 60.0
DISPATCHER, CPU_WORKER, GPU_WORKER = "dispatcher", "cpu-worker", "gpu-worker"


def default_devices() -> str:
    """All CUDA devices, or one CPU slot where there are none."""
    try:
        discover("all")
    except SetupError:
        return "cpu:1"
    return "all"


class Stack:
    """Start, tend and stop it from one thread, which must live as long as the stack shall.

    `say` gets one line for a person at each step; `hurry` tells whether to stop without draining.
    """

    def __init__(
        self,
        *,
        devices: str | None = None,
        say: Callable[[str], None],
        hurry: Callable[[], bool] = lambda: False,
    ) -> None:
        self.home = settings().at_home()
        self.wanted_devices = devices or default_devices()
        self.devices: list[Device] = discover(self.wanted_devices)
        self.embedded = (
            None if settings().database_url else EmbeddedPostgres(settings().embedded_postgres)
        )
        broker = settings().resolved_broker_url
        self.broker_folder = (
            Path(broker.removeprefix(FOLDER_SCHEME)) if broker.startswith(FOLDER_SCHEME) else None
        )
        self._say = say
        self._hurry = hurry
        self._lock = HomeLock(self.home)
        self._children: Children | None = None
        self._started = 0.0
        self._pruned = 0.0

    def take_home(self) -> None:
        """Raises SetupError when another stack has it."""
        self._lock.acquire(patience_seconds=settings().stop_grace_seconds + 15, say=self._say)

    def start(self) -> None:
        """After `take_home`. Raises SetupError, UnavailableError; `stop` stops what was started."""
        if self.embedded is not None:
            started = self.embedded.start()
            how = "started" if started else "was running, attached"
            self._say(f"PostgreSQL   {how}: {self.embedded.folder}")
        self._migrate()
        if self.broker_folder is not None:
            self.broker_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            prune_at_start(self.broker_folder)
        children = Children(self.home / "logs", pass_fds=(self._lock.descriptor,), say=self._say)
        self._children = children
        self._started = time.monotonic()
        children.add(DISPATCHER)
        children.add(CPU_WORKER)
        children.add(GPU_WORKER, "--devices", self.wanted_devices)
        self._say(f"processes    started; their logs: {children.logs}")

    def wait_ready(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Until every device reports and the CPU worker answers, or `should_stop`.

        Raises SetupError that names what is missing.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not should_stop():
            self.tend()
            missing = self._missing()
            if not missing:
                return
            if time.monotonic() > deadline:
                raise SetupError(
                    f"not ready after {READY_SECONDS:g} s: {', '.join(missing)}",
                    where=str(self.home / "logs"),
                    remedy="read the logs there; `celora doctor` checks this machine",
                )
            time.sleep(0.1)

    def tend(self) -> None:
        """Call it every second or so: starts again what has died."""
        if self._children is not None:
            self._children.tend()
        now = time.monotonic()
        if self.broker_folder is not None and now - self._pruned > _PRUNE_SECONDS:
            prune(self.broker_folder)
            self._pruned = now

    def stop(self) -> None:
        """Drain and stop all of it, and the database last. May be called in any state."""
        if self._children is not None:
            grace = settings().stop_grace_seconds + settings().kill_margin_seconds
            # The dispatcher first: it would place jobs on a worker that is about to leave.
            self._children.stop([DISPATCHER], seconds=15, hurry=self._hurry)
            self._children.stop([GPU_WORKER, CPU_WORKER], seconds=grace, hurry=self._hurry)
            self._children = None
        if self.embedded is not None and self._lock.held:
            from models.session import engine

            engine().dispose()
            self.embedded.stop()
        self._lock.release()

    def _migrate(self) -> None:
        import migrations

        migrations.upgrade(settings().resolved_database_url)
        self._say(f"database     at revision {migrations.head()}")

    def _missing(self) -> list[str]:
        """What is not ready yet, in words."""
        from models.queries.gpus import list_gpus
        from models.session import transaction

        try:
            with transaction() as session:
                views = list_gpus(session)
        except UnavailableError:
            return ["the database"]
        age = time.monotonic() - self._started
        ready = {
            view.index
            for view in views
            if view.host == settings().resolved_host
            and view.state not in {"stale", "unknown"}
            and view.heartbeat_age_seconds < age  # said by this worker, not the one before it
        }
        missing = [
            f"the worker of {device.kind}:{device.index}"
            for device in self.devices
            if device.index not in ready
        ]
        if not missing and not _cpu_worker_answers():
            missing.append("the CPU worker")
        return missing


def _cpu_worker_answers() -> bool:
    from tasks.app import app
    from tasks.names import cpu_worker

    name = cpu_worker(settings().resolved_host)
    return bool(app.control.ping(destination=[name], timeout=1.0, limit=1))

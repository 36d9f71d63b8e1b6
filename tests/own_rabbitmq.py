"""A RabbitMQ of the test run's own: loopback only, own node, own epmd, own data folder.

It needs the server's programs, not root: where they are missing and we are root on a Debian-like
system, the package is installed with apt, without letting it start the system's service.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from models.errors import SetupError
from tests import apt
from tests.postgres_server import free_port

# Debian's commands on the PATH insist on root or their own user; the scripts behind them do not.
_DEBIAN_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
START_SECONDS = 120


@dataclass(slots=True)
class Running:
    """The server; it may be killed and started again."""

    port: int
    programs: Path
    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:guest@127.0.0.1:{self.port}"

    @property
    def user(self) -> str:
        return "guest"

    @property
    def rabbitmqctl(self) -> str:
        return str(self.programs / "rabbitmqctl")

    def start(self) -> None:
        """Start it, and return when it takes connections. Raises SetupError."""
        command = [str(self.programs / "rabbitmq-server")]
        with self.log_path.open("ab") as log:
            self.process = _start(command, self.environment, log)
        _wait_for_port(self.port, self.log_path, self.process)

    def family(self) -> list[psutil.Process]:
        """The start script, the Erlang machine below it, and that one's helpers."""
        if self.process is None:
            return []
        script = psutil.Process(self.process.pid)
        return [script, *script.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL all its processes."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            _end(self.process)
            self.process = None


@contextmanager
def own_server(
    folder: Path, erlang_arguments: str = "", configuration: str = ""
) -> Iterator[Running]:
    """Start it below `folder` and stop it at the end; `-rabbit NAME VALUE` is an argument.

    `configuration`: further lines of rabbitmq.conf.

    Raises SetupError where it cannot be started.
    """
    programs = _programs() or _install()
    amqp, distribution, epmd = free_port(), free_port(), free_port()
    environment = _configure(folder, amqp=amqp, distribution=distribution, epmd=epmd)
    environment["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" {erlang_arguments}"
    with Path(environment["RABBITMQ_CONFIG_FILE"]).open("a") as lines:
        lines.write(configuration)
    log_path = folder / "rabbitmq.log"
    with log_path.open("ab") as log:
        # Our own epmd: one that the runtime starts by itself stays behind for ever.
        mapper = [_epmd(), "-address", "127.0.0.1", "-port", str(epmd)]
        names = _start(mapper, environment, log)
    try:
        _wait_for_port(epmd, log_path, names)
        server = Running(amqp, programs, environment, log_path)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        _end(names)


def _programs() -> Path | None:
    """The folder with rabbitmq-server and rabbitmqctl."""
    on_path = shutil.which("rabbitmq-server")
    candidates = [_DEBIAN_SCRIPTS, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((path for path in candidates if (path / "rabbitmq-server").is_file()), None)


def _install() -> Path:
    remedy = "install RabbitMQ, or set CELORA_TEST_BROKER_URL"
    said = apt.install("rabbitmq-server", remedy=remedy)
    programs = _programs()
    if programs is None:
        raise SetupError(f"apt did not install RabbitMQ: {said}", remedy=remedy)
    return programs


def _epmd() -> str:
    found = shutil.which("epmd") or next(
        (str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None
    )
    if found is None:
        raise SetupError("Erlang's epmd is missing", remedy="install Erlang with RabbitMQ")
    return found


def _configure(folder: Path, *, amqp: int, distribution: int, epmd: int) -> dict[str, str]:
    configuration = folder / "rabbitmq.conf"
    configuration.write_text(
        f"listeners.tcp.local = 127.0.0.1:{amqp}\ndefault_user = guest\ndefault_pass = guest\n"
    )
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "rabbitmq-env.conf").touch()
    return {
        **os.environ,
        "HOME": str(folder),  # the Erlang cookie is made there
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd),
        # An address, not a name: Erlang resolves host names in its own way, where it does at all.
        "RABBITMQ_NODENAME": f"celora-test-{os.getpid()}@127.0.0.1",
        "RABBITMQ_USE_LONGNAME": "true",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
    }


def _start(
    command: list[str], environment: dict[str, str], log: BinaryIO
) -> subprocess.Popen[bytes]:
    """A server process, in its own session and working in its own folder."""
    return subprocess.Popen(
        command,
        env=environment,
        cwd=environment["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process and its group, and SIGKILL if that does not help."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_port(port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-800:]
                raise SetupError(f"our own RabbitMQ did not start: {said}") from None
            time.sleep(0.05)
        else:
            return

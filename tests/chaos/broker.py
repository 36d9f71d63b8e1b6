"""The run's broker: a RabbitMQ of its own, or, where none can be started, a line to another one."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from models.errors import SetupError
from tests import own_rabbitmq, rabbitmq_server
from tests.chaos.faults import NotProvedError, refusal
from tests.run_token import run_name
from tests.tcp_proxy import TcpProxy, proxy_to


class OwnBroker:
    kinds = ("broker killed", "broker frozen")

    def __init__(self, server: own_rabbitmq.Running) -> None:
        self._server = server
        self._frozen: list[psutil.Process] = []
        self.url = server.url
        self.what = f"a RabbitMQ of its own on port {server.port}"

    def kill(self) -> str:
        self._server.kill()
        return refusal(self._server.port)

    def freeze(self) -> str:
        self._frozen = self._server.family()
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=2) as line:
            line.settimeout(1)
            line.sendall(b"AMQP\x00\x00\x09\x01")
            try:
                line.recv(1)
            except TimeoutError:
                return "AMQP's greeting is not answered"
        raise NotProvedError("the broker still answers")

    def restore(self) -> None:
        frozen, self._frozen = self._frozen, []
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        if self._server.process is None:
            self._server.start()


class BrokerLine:
    """All connections go through a proxy, which cuts them or falls silent."""

    kinds = ("broker line cut", "broker line silent")

    def __init__(self, url: str, line: TcpProxy) -> None:
        self._line = line
        parts = urlsplit(url)
        self.url = parts._replace(
            netloc=f"{parts.username}:{parts.password}@127.0.0.1:{line.port}"
        ).geturl()
        self.what = "no RabbitMQ of its own: only the line to another one breaks"

    def kill(self) -> str:
        return self._broken(self._line.cut)

    def freeze(self) -> str:
        return self._broken(self._line.go_silent)

    def _broken(self, way: Callable[[], None]) -> str:
        before = self._line.refused + self._line.held
        way()
        patience = time.monotonic() + 10
        while self._line.refused + self._line.held == before:
            if time.monotonic() > patience:
                raise NotProvedError("nobody noticed")
            time.sleep(0.05)
        return f"{self._line.refused + self._line.held - before} connections or chunks stopped"

    def restore(self) -> None:
        self._line.restore()


@contextmanager
def broker(folder: Path) -> Iterator[OwnBroker | BrokerLine]:
    """Raises SetupError where there is no RabbitMQ at all."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(own_rabbitmq.own_server(folder))
        except SetupError:
            other = stack.enter_context(rabbitmq_server.find_or_start(folder, own=False))
            url = stack.enter_context(other.vhost(run_name("chaos")))
            parts = urlsplit(url)
            target = (parts.hostname or "127.0.0.1", parts.port or 5672)
            yield BrokerLine(url, stack.enter_context(proxy_to(*target)))
        else:
            yield OwnBroker(server)

"""A receiver of webhooks on loopback, which behaves as badly as it is told to.

with Receiver() as receiver:
    receiver.behave("ok")        # ok, error, late, silent, close, redirect, gone, busy, flood
    … receiver.url …
    receiver.got                 # what came, in order
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`silent` takes the request and never answers; `stop` lets what hangs go."""

    got: list[Got] = field(default_factory=list)
    open: int = 0  # requests being answered now
    most_open: int = 0
    first: list[str] = field(default_factory=list)  # how the first requests are met
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._behaviours: dict[str, str] = {}
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(self)

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def behave(self, how: str, path: str = "") -> None:
        """For all paths, or for one."""
        self._behaviours[path] = how

    def behaviour(self, path: str) -> str:
        return self._behaviours.get(path) or self._behaviours.get("", "ok")

    def at(self, path: str) -> list[Got]:
        return [one for one in self.got if one.path == path]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for them: no socket is left open
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate leaves: no traceback for that."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(("127.0.0.1", 0), _Handler)
        if receiver.tls is not None:
            self.socket = receiver.tls.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with receiver.lock:
            receiver.got.append(Got(self.path, headers, body))
            receiver.open += 1
            receiver.most_open = max(receiver.most_open, receiver.open)
            how = receiver.first.pop(0) if receiver.first else receiver.behaviour(self.path)
        if how == "silent":
            receiver.released.wait(600)
        with receiver.lock:  # before the answer: the next one may come with it
            receiver.open -= 1
        self._answer(receiver, how)

    def _answer(self, receiver: Receiver, how: str) -> None:
        self.close_connection = True
        match how:
            case "silent" | "close":
                pass
            case "redirect":
                self._reply(307, location=f"http://127.0.0.1:{receiver.port}/elsewhere")
            case "busy":
                self._reply(503, **{"retry-after": "1800"})
            case "flood":
                self._flood()
            case _:
                self._reply({"ok": 200, "error": 500, "gone": 410}[how])

    def _reply(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def _flood(self) -> None:
        """A body without an end: who reads it sits there for ever."""
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.receiver.released.is_set():
                self.wfile.write(b"x" * 65_536)
        except OSError:
            pass  # the other side has had enough

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (its name there)
        """Says nothing."""

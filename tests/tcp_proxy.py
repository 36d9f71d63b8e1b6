"""A TCP proxy that fails on command: it cuts connections, refuses new ones, or goes silent."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 16


class TcpProxy:
    """Forwards `127.0.0.1:port` to a server; connections are counted in `refused` and `held`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._silent = threading.Event()
        self._closed = threading.Event()
        self._down = threading.Event()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.refused = 0  # connections that were closed at once, or cut
        self.held = 0  # chunks that were kept back in silence
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """The server is gone: every connection is reset, and new ones are closed at once."""
        self._down.set()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            self.refused += 1
            _reset(pair)

    def go_silent(self) -> None:
        """A firewall drops everything: connections stay open, nothing comes through."""
        self._silent.set()

    def restore(self) -> None:
        """Up again. What was kept back in silence is dropped with its connections."""
        if self._silent.is_set():
            self.cut()
        self._silent.clear()
        self._down.clear()

    def close(self) -> None:
        self._closed.set()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._down.is_set():
            self.refused += 1
            _reset((client,))
            return
        try:
            server = socket.create_connection(self._target)
        except OSError:
            _reset((client,))
            return
        pair = (client, server)
        with self._lock:
            self._pairs.append(pair)
        with suppress(OSError, ValueError):
            self._forward(client, server)
        _reset(pair)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select(0.5):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if self._silent.is_set():
                        self.held += 1
                        selector.unregister(source)  # not even read: the peer's buffers fill up
                        continue
                    data = source.recv(_CHUNK)
                    if not data:
                        return
                    key.data.sendall(data)
                if client.fileno() < 0:
                    return


def _reset(sockets: tuple[socket.socket, ...]) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@contextmanager
def proxy_to(host: str, port: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()

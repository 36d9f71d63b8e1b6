"""Counts the statements that reach Postgres: a proxy that reads what its clients say."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import Counter
from typing import Self

_CHUNK = 1 << 16
_STARTUP_VERSION = 3  # major version in a startup message; other untyped messages ask for TLS


class StatementCounter:
    """Forwards `port` to a server; `statements` counts executions by the beginning of their text.

    Connections must not be encrypted.
    """

    def __init__(self) -> None:
        self.statements: Counter[str] = Counter()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def to(self, host: str, port: int) -> int:
        """Listen for connections to that server; returns our port."""
        listening = asyncio.start_server(
            lambda reader, writer: self._serve(reader, writer, host, port), "127.0.0.1", 0
        )
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port = server.sockets[0].getsockname()[1]
        return self.port

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        try:
            answers, questions = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        client = _Client(self.statements)
        await asyncio.gather(
            _pump(reader, questions, client), _pump(answers, writer), return_exceptions=True
        )


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: _Client | None = None
) -> None:
    try:
        while data := await reader.read(_CHUNK):
            if client is not None:
                client.feed(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


class _Client:
    """What one connection has said so far."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._data = b""
        self._started = False
        self._prepared: dict[bytes, str] = {}
        self._bound = ""

    def feed(self, data: bytes) -> None:
        self._data += data
        kind_length = 1 if self._started else 0
        while len(self._data) >= kind_length + 4:
            (length,) = struct.unpack_from("!i", self._data, kind_length)
            whole = kind_length + length
            if len(self._data) < whole:
                return
            body, kind = self._data[kind_length + 4 : whole], self._data[:kind_length]
            self._data = self._data[whole:]
            if self._started:
                self._take(kind, body)
            else:
                self._started = struct.unpack_from("!h", body)[0] == _STARTUP_VERSION
            kind_length = 1 if self._started else 0

    def _take(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"Q":
                self._counts[_words(body)] += 1
            case b"P":
                name, text, *_ = body.split(b"\0")
                self._prepared[name] = _words(text)
            case b"B":
                _portal, name, *_ = body.split(b"\0")
                self._bound = self._prepared.get(name, "?")
            case b"E":
                self._counts[self._bound] += 1


def _words(statement: bytes) -> str:
    return " ".join(statement.rstrip(b"\0").decode(errors="replace").split())[:200]

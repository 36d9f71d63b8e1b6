"""The real HTTP API on a free loopback port, in this process, and keys for it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from celora.api.keys import create_key
from celora.api.serve import config


@dataclass(frozen=True, slots=True)
class ApiServer:
    url: str  # without a path

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@contextmanager
def serving(change: Callable[[FastAPI], None] | None = None) -> Iterator[ApiServer]:
    """Serve with the settings that hold now. `change` may add to the application."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        configuration = config("127.0.0.1", 0)
        if change is not None:
            assert isinstance(configuration.app, FastAPI)
            change(configuration.app)
        server = uvicorn.Server(configuration)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        try:
            yield ApiServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)


def key_for(tenant: str, *scopes: str, user: str = "ann", per_minute: int = 0) -> str:
    """A key of `tenant`; without scopes it may read and submit."""
    return create_key(
        tenant=tenant, user=user, scopes=scopes or ("submit",), requests_per_minute=per_minute
    ).key

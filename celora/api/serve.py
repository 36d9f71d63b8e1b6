"""The server process: uvicorn around the application."""

from __future__ import annotations

from typing import Any

import uvicorn

from celora.api.app import create_app
from celora.api.logs import CONFIG


def config(address: str, port: int, *, log_config: dict[str, Any] | None = None) -> uvicorn.Config:
    """X-Forwarded-… headers count where they come from this machine: from a proxy beside us."""
    return uvicorn.Config(
        create_app(),
        host=address,
        port=port,
        log_config=log_config,
        access_log=False,  # celora.api.requests writes it
        server_header=False,
        timeout_keep_alive=75,  # longer than a proxy's, which then never meets a closed connection
        timeout_graceful_shutdown=30,
    )


def serve(address: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    uvicorn.Server(config(address, port, log_config=CONFIG)).run()

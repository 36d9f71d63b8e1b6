"""The server process: uvicorn around the application."""

from __future__ import annotations

import uvicorn

from celora.api.app import create_app


def config(address: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(create_app(), host=address, port=port, server_header=False)


def serve(address: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    uvicorn.Server(config(address, port)).run()

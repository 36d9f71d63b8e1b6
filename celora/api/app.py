"""The application: its routers, in one place, and what holds for every request."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastapi import FastAPI

from celora.api.errors import ErrorAnswer, add_handlers

# Each module has a `router`. The order is that of the page at /docs.
_ROUTERS = ("celora.api.files", "celora.api.health")
_TITLE = "Celora"
_ERRORS = {
    400: "Something that was sent cannot be used.",
    401: "No valid key.",
    403: "The key lacks the scope.",
    404: "There is no such object, or it belongs to another tenant.",
    429: "The key's rate is spent; `retry-after` says how long to wait.",
    500: "A fault of the server.",
    503: "The database or the store does not answer.",
}


def create_app() -> FastAPI:
    app = FastAPI(title=_TITLE, redoc_url=None)
    add_handlers(app)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()
    }
    for module in _ROUTERS:
        app.include_router(import_module(module).router, responses=responses)
    return app

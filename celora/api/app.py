"""The application: its routers, in one place, and what holds for every request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from celora.api.errors import ErrorAnswer, add_handlers
from celora.api.meters import Meters
from celora.api.requests import Requests
from celora.api.serving import close_client

# Each module has a `router`. The order is that of the page at /docs.
_ROUTERS = (
    "celora.api.fine_tuning",
    "celora.api.job_history",
    "celora.api.files",
    "celora.api.models",
    "celora.api.finetune",
    "celora.api.serving",
    "celora.api.health",
    "celora.api.metrics",
    "celora.api.page",
)
_TITLE = "Celora"
_ABOUT = """
Fine-tuning on your own GPUs, over the endpoints that OpenAI's client knows: set its `base_url` to
this server's `/v1` and its `api_key` to a key from `celora keys create`.
"""
_ERRORS = {
    400: "Something that was sent cannot be used.",
    401: "No valid key.",
    403: "The key lacks the scope.",
    404: "There is no such object, or it belongs to another tenant.",
    408: "The request stood still before it was whole.",
    409: "The state of the object does not allow it; asking again does not help.",
    413: "The body, or the file, is too large.",
    429: "The key's rate is spent; `retry-after` says how long to wait.",
    500: "A fault of the server; its log has it under the id in `x-request-id`.",
    503: "The database or the store does not answer.",
}


def create_app() -> FastAPI:
    app = FastAPI(
        title=_TITLE,
        version=version("celora"),
        description=_ABOUT,
        docs_url=None,  # celora.api.page has one that needs no other server
        redoc_url=None,
        redirect_slashes=False,  # a redirect has no shape of ours, and behind a proxy no address
        lifespan=_living,
    )
    meters = Meters()
    app.state.meters = meters
    app.add_middleware(Requests, meters=meters)
    add_handlers(app)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()
    }
    for module in _ROUTERS:
        app.include_router(import_module(module).router, responses=responses)
    describe = app.openapi
    app.openapi = lambda: _described(describe())  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    yield
    await close_client(app)


def _described(page: dict[str, Any]) -> dict[str, Any]:
    """The description without FastAPI's own shape of a wrong request: ours is a 400 like others."""
    for operations in page["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        page.get("components", {}).get("schemas", {}).pop(name, None)
    return page

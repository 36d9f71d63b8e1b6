"""How many streams may be open at once: each holds a connection, and its client may forget it."""

from __future__ import annotations

from collections import Counter

from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from celora.api.errors import ApiError
from models.settings import settings

_WAIT = {"retry-after": "30"}


def take_place(app: FastAPI, key_id: str) -> None:
    """Count one more stream of this process, which `HeldStream` gives back. Raises ApiError."""
    places = _places(app)
    if places[key_id] >= settings().api_streams_per_key:
        raise ApiError(
            429,
            f"this key has {places[key_id]} streams open, and may have no more; close one",
            type_="requests",
            code="too_many_streams",
            headers=_WAIT,
        )
    if places.total() >= settings().api_streams:
        raise ApiError(
            503,
            "this server has as many streams open as it may; ask for the events instead, or later",
            type_="server_error",
            code="too_many_streams",
            headers=_WAIT,
        )
    places[key_id] += 1


def leave_place(app: FastAPI, key_id: str) -> None:
    places = _places(app)
    places[key_id] -= 1
    if not places[key_id]:
        del places[key_id]


class HeldStream(EventSourceResponse):
    """Gives its place back however it ends, also when its client has left before it began."""

    key_id: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            leave_place(scope["app"], self.key_id)


def _places(app: FastAPI) -> Counter[str]:
    """Open streams by key; only the event loop touches it."""
    if not hasattr(app.state, "open_streams"):
        app.state.open_streams = Counter()
    places: Counter[str] = app.state.open_streams
    return places

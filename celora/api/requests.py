"""What holds for every request, whatever answers it: an id, limits on its body, one line of log,
headers that browsers obey, and an answer in our shape when the program fails.

Plain ASGI and not a Starlette middleware: an answer that is streamed goes through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import traceback
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celora.api import page
from celora.api.errors import ApiError, answer, too_large, unexpected
from celora.api.logs import request_id
from celora.api.meters import Meters
from models.settings import settings

log = logging.getLogger(__name__)

_UPLOAD = ("POST", "/v1/files")
_FORM_BYTES = 64 * 1024  # around a file: boundaries and the other fields
# After a refusal the rest of a body is read away, so that the client gets to the answer.
_DRAIN_BYTES, _DRAIN_SECONDS = 64 * 1024**2, 5.0
_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Requests:
    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Request(self, scope, receive, send).run()


class _Request:
    def __init__(self, outer: Requests, scope: Scope, receive: Receive, send: Send) -> None:
        self.outer, self.scope, self._receive, self._send = outer, scope, receive, send
        self.id = f"req_{secrets.token_hex(12)}"
        self.status: int | None = None
        self.limit = self.left = _limit(scope)
        self.whole = False
        self.began = time.perf_counter()

    async def run(self) -> None:
        token = request_id.set(self.id)
        state = self.scope.setdefault("state", {})
        state["request_id"] = self.id
        try:
            with self.outer.meters.in_flight():
                await self._answered()
        finally:
            self._account()
            request_id.reset(token)

    async def _answered(self) -> None:
        try:
            self._require_size()
            await self.outer.app(self.scope, self.receive, self.send)
        except ApiError as error:  # before the application was asked
            await answer(error)(self.scope, self._receive, self.send)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            # Where it happened and not what it says: a message may hold what a user sent.
            log.error(  # noqa: TRY400 (as above)
                "%s in %s", type(error).__name__, _frames(error), extra={"event": "fault"}
            )
            if self.status is not None:
                raise  # half an answer is sent: the connection breaks
            await unexpected()(self.scope, self._receive, self.send)

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()  # a stream waits here for its client to leave
        try:
            async with asyncio.timeout(settings().api_body_seconds):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "the request stood still for too long", code="timeout") from None
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.left < 0:
                raise too_large(self.limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 413:  # noqa: PLR2004
                await self._drain()
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            if self.scope["path"] == "/docs":
                headers["content-security-policy"] = page.POLICY
            if (rate := self.scope["state"].get("rate")) is not None:
                headers.update(rate.headers())
        await self._send(message)

    def _require_size(self) -> None:
        """Before a byte is read, where the client says how many there will be."""
        told = dict(self.scope["headers"]).get(b"content-length", b"")
        if told.isdigit() and int(told) > self.left:
            raise too_large(self.limit)

    async def _drain(self) -> None:
        left = _DRAIN_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0 and not self.whole:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self.whole = not message.get("more_body", False)

    def _account(self) -> None:
        seconds = time.perf_counter() - self.began
        route = getattr(self.scope.get("route"), "path", "unmatched")
        status = self.status or 499  # the client left before there was an answer
        self.outer.meters.note(self.scope["method"], route, status, seconds)
        state = self.scope["state"]
        log.info(
            "%s %s %s",
            self.scope["method"],
            route,
            status,
            extra={
                "event": "request",
                "method": self.scope["method"],
                "route": route,  # the template: a path may hold names, a query anything
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                "key": state.get("key_id"),
                "tenant": state.get("tenant"),
            },
        )


def _limit(scope: Scope) -> int:
    if (scope["method"], scope["path"]) == _UPLOAD:
        return settings().api_file_bytes + _FORM_BYTES
    return settings().api_body_bytes


def _frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))

"""Chat completions are vLLM's: with CELORA_SERVING_URL set they pass through to it, unchanged."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from celora.api.caller import Caller, Reader, no_such
from celora.api.errors import ApiError
from celora.api.model_names import parse_name
from celora.api.own_models import own_model
from models.session import transaction
from models.settings import settings

router = APIRouter(prefix="/v1/chat/completions", tags=["serving"])

_log = logging.getLogger(__name__)
# An answer takes as long as it takes; that the server is there shows soon.
_PATIENCE = httpx.Timeout(600, connect=5)
_LIST_PATIENCE = httpx.Timeout(5)
_LIST_SECONDS = 10.0  # how long the list of base models is taken to be right
_ANSWERED = ("content-type", "retry-after")

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {"model": {"type": "string"}},
                    "additionalProperties": True,
                }
            }
        },
    }
}


@router.post(
    "",
    openapi_extra=_BODY,
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/json": {}, "text/event-stream": {}}},
        502: {"description": "The serving server does not answer."},
    },
)
async def chat(request: Request, caller: Reader) -> StreamingResponse:
    """Pass a chat on to the vLLM server, and its answer back as it comes."""
    if not settings().serving_url:
        raise ApiError(
            404,
            "this server does not serve models: the administrator sets CELORA_SERVING_URL to a vLLM"
            " server",
            code="serving_off",
        )
    body = await request.body()
    model = _model_of(body)
    if model.startswith("ft:"):
        await run_in_threadpool(_require_own_model, caller, model)
    else:
        await _require_base(request.app, model)
    client = _client(request.app)
    outgoing = client.build_request(
        "POST", "chat/completions", content=body, headers={"content-type": "application/json"}
    )
    try:
        answer = await client.send(outgoing, stream=True)
    except httpx.HTTPError as error:
        raise _away(error) from error
    return StreamingResponse(
        _passed_on(answer),
        status_code=answer.status_code,
        headers={name: answer.headers[name] for name in _ANSWERED if name in answer.headers},
        background=BackgroundTask(answer.aclose),
    )


async def served_bases(app: FastAPI) -> list[str]:
    """Base models that the serving server answers to, which are everybody's; none where there is no
    server, or it is away."""
    if not settings().serving_url:
        return []
    try:
        return await _listed_bases(app)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        _log.warning("the serving server's models are not known: %s", type(error).__name__)
        return []


async def _listed_bases(app: FastAPI) -> list[str]:
    """Raises what the client raises, and ValueError, KeyError or TypeError for a strange answer."""
    answer = await _client(app).get("models", timeout=_LIST_PATIENCE)
    answer.raise_for_status()
    # An adapter that was loaded under another name than `ft:…` names the base that it stands on:
    # whose it is nobody can tell.
    return [
        name
        for one in answer.json()["data"]
        if not one.get("parent") and not (name := str(one["id"])).startswith("ft:")
    ]


async def close_client(app: FastAPI) -> None:
    """At the server's end."""
    if hasattr(app.state, "serving"):
        await _client(app).aclose()


def _require_own_model(caller: Caller, name: str) -> None:
    """A fine-tuned model is its tenant's alone."""
    if parse_name(name) is None:
        raise no_such("model", name)
    with transaction() as session:
        own_model(session, caller, name)


async def _require_base(app: FastAPI, name: str) -> None:
    """Base models are everybody's; the server says which names are. It is asked again where a name
    is new, and in any case after a while: an adapter may be loaded under a name at any time."""
    known: tuple[float, list[str]] = getattr(app.state, "served_bases", (0.0, []))
    if name not in known[1] or time.monotonic() - known[0] > _LIST_SECONDS:
        try:
            known = time.monotonic(), await _listed_bases(app)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise _away(error) from error
        app.state.served_bases = known
    if name not in known[1]:
        raise no_such("model", name)


def _away(error: Exception) -> ApiError:
    _log.warning("the serving server did not answer: %s", type(error).__name__)
    return ApiError(
        502,
        "the serving server does not answer; try again",
        code="serving_unavailable",
        type_="server_error",
    )


def _model_of(body: bytes) -> str:
    try:
        sent = json.loads(body)
    except ValueError:
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
    model = sent.get("model") if isinstance(sent, dict) else None
    if not isinstance(model, str):
        raise ApiError(400, "model: name the model", code="missing", param="model")
    return model


async def _passed_on(answer: httpx.Response) -> AsyncIterator[bytes]:
    """As it comes. A server that breaks off in the middle ends the answer there."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        _log.warning("the serving server broke off: %s", type(error).__name__)
    finally:
        await answer.aclose()


def _client(app: FastAPI) -> httpx.AsyncClient:
    """One for the process: its connections are kept."""
    if not hasattr(app.state, "serving"):
        key = settings().serving_key
        app.state.serving = httpx.AsyncClient(
            base_url=settings().serving_url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=_PATIENCE,
            trust_env=False,
        )
    client: httpx.AsyncClient = app.state.serving
    return client

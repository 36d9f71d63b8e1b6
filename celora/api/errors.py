"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, all four always.

What went wrong inside is for the log. A caller gets what it can act on, and the request's id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DataError as UnstorableError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from models.errors import (
    CeloraError,
    DataError,
    InputError,
    NotFoundError,
    StateError,
    UnavailableError,
)

log = logging.getLogger(__name__)
_INVALID = "invalid_request_error"
_CODES = {400: "invalid_body", 404: "not_found", 405: "method_not_allowed"}


class ApiError(HTTPException):
    """An answer other than 2xx that only HTTP knows: the rest are CeloraErrors.

    An HTTPException, because FastAPI makes a 400 of whatever else is raised while it reads a body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type_: str = _INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.param = param
        self.type = type_


_EXAMPLE: Any = {
    "error": {
        "message": "there is no file 'file-none'",
        "type": "invalid_request_error",
        "param": "training_file",
        "code": "file_not_found",
    }
}


class ErrorFields(BaseModel):
    message: str
    type: Literal["invalid_request_error", "requests", "server_error"]
    param: str | None = Field(description="The field that is wrong, where it is one.")
    code: str | None = Field(description="For programs.")


class ErrorAnswer(BaseModel):
    """What every answer but a good one holds."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    error: ErrorFields


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(CeloraError, _celora_error)
    app.add_exception_handler(PoolTimeoutError, _too_busy)
    app.add_exception_handler(UnstorableError, _not_storable)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)


def answer(error: ApiError) -> JSONResponse:
    # The client retries 409 and 5xx by itself. What a state forbids stays forbidden.
    retry = {"x-should-retry": "false"} if error.status_code == 409 else {}  # noqa: PLR2004
    fields = {
        "message": error.detail,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    headers = retry | dict(error.headers or {})
    return JSONResponse({"error": fields}, error.status_code, headers=headers)


def too_large(limit: int) -> ApiError:
    message = f"the body is too large: {limit:,} bytes are the most here"
    return ApiError(413, message, code="request_too_large")


def unexpected() -> JSONResponse:
    """What a fault of ours looks like from outside."""
    message = "the server failed; the log has it under the id in x-request-id"
    return answer(ApiError(500, message, code="internal_error", type_="server_error"))


def translated(error: CeloraError) -> ApiError:
    """The answer that one of our errors is."""
    if isinstance(error, InputError):
        status = 404 if isinstance(error, NotFoundError) else 400
        return ApiError(status, _sentence(error), code=error.code, param=error.where)
    if isinstance(error, StateError):
        return ApiError(409, _sentence(error), code=error.code, param=error.where)
    # The rest speaks of hosts, folders and settings: nothing a caller should read.
    if isinstance(error, UnavailableError):
        return ApiError(
            503,
            "a server behind this one does not answer; try again",
            code=error.code,
            type_="server_error",
            headers={"retry-after": "2"},
        )
    return ApiError(500, "the server cannot do this", code=error.code, type_="server_error")


def _sentence(error: CeloraError) -> str:
    parts = [error.what]
    if isinstance(error, DataError):
        parts += [f"line {one.line}: {one.what} ({one.remedy})" for one in error.problems]
        if (hidden := error.problem_count - len(error.problems)) > 0:
            parts.append(f"… and {hidden} more")
    if error.remedy is not None and not getattr(error, "problems", ()):  # rows have their own
        parts.append(error.remedy)
    return "; ".join(parts)


def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)  # noqa: S101 (Starlette hands over what was registered)
    return answer(error)


def _celora_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CeloraError)  # noqa: S101 (as above)
    told = translated(error)
    if told.status_code >= 500:  # noqa: PLR2004
        log.error("%s: %s", type(error).__name__, error.what)
    return answer(told)


def _too_busy(_: Request, error: Exception) -> JSONResponse:
    log.error("no connection to the database was free: %s", error)
    return answer(translated(UnavailableError("no connection to the database was free")))


def _not_storable(_: Request, error: Exception) -> JSONResponse:
    """Postgres has no NUL character; an id or a name with one is nothing that could be found."""
    log.warning("%s: a value could not be sent to the database", type(error).__name__)
    message = "a value that was sent holds a character that cannot be stored"
    return answer(ApiError(400, message, code="invalid_value"))


def _not_valid(_: Request, error: Exception) -> JSONResponse:
    """The first of what pydantic found. What was sent is not repeated: it may be training text."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 (as above)
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer(ApiError(400, "the body is not valid JSON", code="invalid_json"))
    place = [str(part) for part in first["loc"]]
    if place and place[0] in ("body", "query", "path", "header"):
        place = place[1:]
    param = ".".join(place) or None
    message = f"{param or 'the body'}: {first['msg']}"
    return answer(ApiError(400, message, code=str(first["type"]), param=param))


def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (as above)
    code = _CODES.get(error.status_code, "http_error")
    told = ApiError(
        error.status_code, str(error.detail), code=code, headers=dict(error.headers or {})
    )
    return answer(told)

"""Who asks: the key of a request, its tenant and user, and what it may do.

An endpoint takes one of these as a parameter; FastAPI then answers 401, 403 and 429 by itself:

    def list_things(caller: Reader) -> …
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from celora.api.errors import ApiError
from celora.api.keys import digest_of, with_lesser
from celora.api.rates import Rate
from models.errors import NotFoundError
from models.queries.api_keys import admit
from models.session import transaction
from models.settings import settings

_bearer = HTTPBearer(auto_error=False, description="A key from `celora keys create`.")


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str
    user: str
    key_id: str
    scopes: frozenset[str]
    tenant_id: int


def require(scope: str) -> Callable[..., Caller]:
    """A dependency that gives the caller, whose key has to allow `scope`."""

    def caller(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Caller:
        found = _admitted(request, credentials)
        if scope not in found.scopes:
            raise ApiError(
                403,
                f"this key may not do that: it lacks the scope {scope!r}",
                code="insufficient_permissions",
            )
        return found

    return caller


Reader = Annotated[Caller, Depends(require("read"))]
Submitter = Annotated[Caller, Depends(require("submit"))]
Admin = Annotated[Caller, Depends(require("admin"))]


def require_own(caller: Caller, tenant: str | int, what: str, name: str) -> None:
    """Raise NotFoundError for an object of another tenant, as if it were not there.

    `tenant`: the owner's name or id; `what`: "job", "file", …
    """
    if tenant not in (caller.tenant, caller.tenant_id):
        raise no_such(what, name)


def no_such(what: str, name: str) -> NotFoundError:
    """The one answer for what is not there and for what belongs to others."""
    return NotFoundError(f"there is no {what} {name!r}")


def _admitted(request: Request, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    if credentials is None:
        raise _refused("no API key was given: send the header `Authorization: Bearer KEY`")
    digest = digest_of(credentials.credentials)
    if digest is None:
        raise _refused("the API key is not valid")
    with transaction() as session:
        admission = admit(session, digest, default_limit=settings().api_requests_per_minute)
    if admission is None:
        raise _refused("the API key is not valid")
    request.state.key_id, request.state.tenant = admission.key_id, admission.tenant  # for the log
    rate = Rate(admission.limit, admission.spent_seconds)
    request.state.rate = rate  # for the answer's headers
    if not admission.allowed:
        raise ApiError(
            429,
            f"over {rate.limit} requests a minute with this key; wait {rate.wait_seconds} s",
            type_="requests",
            code="rate_limit_exceeded",
            headers={"retry-after": str(rate.wait_seconds)},
        )
    return Caller(
        tenant=admission.tenant,
        user=admission.user,
        key_id=admission.key_id,
        scopes=with_lesser(admission.scopes),
        tenant_id=admission.tenant_id,
    )


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

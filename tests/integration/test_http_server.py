"""The HTTP server itself: who gets in, what errors look like, what every answer carries."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api_server import ApiServer, serving


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def http(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_it_lives_and_is_ready(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("verb", "path", "status"), [("GET", "/nothing", 404), ("POST", "/healthz", 405)]
)
def test_what_is_not_there(http: httpx.Client, verb: str, path: str, status: int) -> None:
    answer = http.request(verb, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

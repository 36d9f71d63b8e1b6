"""The HTTP server itself: who gets in, what errors look like, what every answer carries."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from celora.api.keys import create_key
from celora.api.logs import JsonLines
from models.queries.api_keys import list_keys, revoke_key
from models.session import transaction
from tests import records
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables
from tests.waiting import until

SHAPE = {"message", "type", "param", "code"}
SECRET_TEXT = "the patient said"


def _faulty(app: FastAPI) -> None:
    """Endpoints that fail as only a fault of ours could."""

    @app.get("/fault")
    def fault() -> None:
        raise RuntimeError(SECRET_TEXT)

    @app.post("/echo")
    def echo(body: dict[str, int]) -> dict[str, int]:
        return body


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    with (
        variables(CELORA_API_BODY_SECONDS="1", CELORA_API_BODY_BYTES="20000"),
        serving(_faulty) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def http(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def key(server: ApiServer) -> str:  # noqa: ARG001 (needs its database)
    return key_for("team", "read")


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What the API writes to its log, as it writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("celora.api")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_it_lives_and_is_ready(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok"}


def test_it_is_not_ready_without_a_database(http: httpx.Client) -> None:
    with variables(CELORA_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:9/none"):
        answer = http.get("/readyz")
        assert "celora_database_up 0" in http.get("/metrics").text
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    assert "127.0.0.1" not in answer.text
    assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/files/", 404), ("POST", "/healthz", 405)],
)
def test_what_is_not_there(http: httpx.Client, verb: str, path: str, status: int) -> None:
    answer = http.request(verb, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == SHAPE


def test_a_fault_tells_its_number_and_nothing_else(http: httpx.Client) -> None:
    with logged() as log:
        answer = http.get("/fault", params={"q": SECRET_TEXT})
    assert answer.status_code == 500
    assert set(answer.json()["error"]) == SHAPE
    assert SECRET_TEXT not in answer.text
    assert "Traceback" not in answer.text
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert SECRET_TEXT not in log.getvalue()
    assert {line["request_id"] for line in lines} == {answer.headers["x-request-id"]}
    assert "RuntimeError in " in lines[0]["message"]
    assert "fault" in lines[0]["message"]
    assert (lines[1]["route"], lines[1]["status"]) == ("/fault", 500)


def test_a_wrong_body_is_not_repeated(http: httpx.Client) -> None:
    with logged() as log:
        wrong = http.post("/echo", json={"a": SECRET_TEXT})
        broken = http.post("/echo", content=b"{", headers={"content-type": "application/json"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "a")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    assert SECRET_TEXT not in wrong.text + log.getvalue()


@pytest.mark.parametrize(
    "path",
    ["/v1/files/%00", "/v1/files?after=%00", "/v1/files?purpose=%00", "/v1/files/a%00/content"],
)
def test_a_character_that_cannot_be_stored(http: httpx.Client, key: str, path: str) -> None:
    answer = http.get(path, headers=bearer(key))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


def test_keys_that_open_nothing(http: httpx.Client, server: ApiServer) -> None:
    over = create_key(
        tenant="team",
        user="ann",
        scopes=["read"],
        expires_at=datetime.now(UTC) - timedelta(seconds=1),
    )
    revoked = create_key(tenant="team", user="ann", scopes=["admin"])
    assert http.get("/v1/files", headers=bearer(revoked.key)).status_code == 200
    with transaction() as session:
        revoke_key(session, revoked.id)
    unknown = "sk-celora-" + "x" * 43
    for headers in (
        {},
        bearer("x"),
        bearer(unknown),
        bearer(over.key),
        bearer(revoked.key),
        {"Authorization": "Basic eDp5"},
    ):
        answer = http.get("/v1/files", headers=headers)
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    with (
        OpenAI(base_url=server.v1, api_key=unknown, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.files.list()
    assert caught.value.request_id


def test_a_key_without_the_scope(http: httpx.Client, key: str) -> None:
    answer = http.delete("/v1/files/file-none", headers=bearer(key))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert http.get("/v1/files", headers=bearer(key_for("team", "admin"))).status_code == 200


def test_a_key_is_kept_as_a_digest(http: httpx.Client, database: str) -> None:
    made = create_key(tenant="kept", user="ann", scopes=["read"], name="CI")
    assert http.get("/v1/files", headers=bearer(made.key)).status_code == 200
    with transaction() as session:
        (found,) = list_keys(session, tenant="kept", revoked=False)
        dump = str(session.connection().exec_driver_sql("SELECT * FROM api_keys").all())
    assert made.key not in dump + repr(made)
    assert made.key.startswith(found.prefix)
    assert (found.name, found.user, found.scopes) == ("CI", "ann", ("read",))
    assert found.last_used_at is not None
    del database


def test_a_rate_holds_over_all_processes(http: httpx.Client, server: ApiServer) -> None:
    limited = bearer(key_for("rates", per_minute=3))
    with serving() as other, httpx.Client(base_url=other.url) as second:
        answers = [client.get("/v1/files", headers=limited) for client in (http, second, http)]
        refused = second.get("/v1/files", headers=limited)
    assert [answer.status_code for answer in answers] == [200] * 3
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["2", "1", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    with (
        OpenAI(base_url=server.v1, api_key=limited["Authorization"][7:], max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.files.list()
    free = http.get("/v1/files", headers=bearer(key_for("rates")))
    assert "x-ratelimit-limit-requests" not in free.headers


def test_a_rate_holds_for_requests_at_the_same_moment(http: httpx.Client) -> None:
    limited = bearer(key_for("rates", per_minute=1))
    with serving() as other, ThreadPoolExecutor(8) as pool:
        urls = [f"{base}/v1/files" for base in (str(http.base_url).rstrip("/"), other.url)] * 4
        codes = list(pool.map(lambda url: httpx.get(url, headers=limited).status_code, urls))
    assert sorted(codes) == [200] + [429] * 7


def test_every_answer_has_an_id_and_security_headers(http: httpx.Client, key: str) -> None:
    answers = [
        http.get("/healthz"),
        http.get("/nothing"),
        http.get("/v1/files", headers=bearer(key)),
        http.get("/v1/files"),
    ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    for answer in answers:
        assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_the_log_of_a_request_names_no_secret(http: httpx.Client, key: str) -> None:
    with logged() as log:
        http.get("/v1/files", params={"purpose": SECRET_TEXT}, headers=bearer(key))
        http.get(f"/v1/files/{key}", headers=bearer(key))
    (listing, retrieval) = (json.loads(line) for line in log.getvalue().splitlines())
    assert (listing["method"], listing["route"], listing["status"]) == ("GET", "/v1/files", 200)
    assert (listing["tenant"], retrieval["route"]) == ("team", "/v1/files/{file_id}")
    assert listing["key"].startswith("key_")
    assert SECRET_TEXT not in log.getvalue()
    assert key not in log.getvalue()


def test_a_body_over_the_limit(http: httpx.Client) -> None:
    body = b'{"a": 1' + b" " * 30_000 + b"}"
    for sent in (body, iter([body[:9000], body[9000:]])):  # with its length, and in chunks
        answer = http.post("/echo", content=sent, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert http.post("/echo", json={"a": 1}).json() == {"a": 1}


def test_a_body_that_stands_still(server: ApiServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as line:
        head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert line.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_is_no_fault(server: ApiServer) -> None:
    upload = key_for("team")
    host, port = server.url.removeprefix("http://").split(":")
    with logged() as log:
        with socket.create_connection((host, int(port)), timeout=60) as line:
            head = f"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {upload}\r\n"
            form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 900\r\n\r\n--x"
            line.sendall(f"{head}{form}".encode())
        until(lambda: "POST /v1/files" in log.getvalue())
    assert '"status": 499' in log.getvalue()
    assert '"fault"' not in log.getvalue()


def test_metrics_count_jobs_and_requests_and_name_nobody(http: httpx.Client, key: str) -> None:
    records.submit("metered")
    http.get("/v1/files", headers=bearer(key))
    http.get("/v1/files/file-none", headers=bearer(key))
    http.get("/wp-admin/x.php")
    text = http.get("/metrics").text
    assert 'celora_jobs{state="pending"} 1.0' in text
    assert 'celora_jobs_ended_total{as="completed"} 0.0' in text
    assert re.search(r'requests_total{method="GET",route="/v1/files",status="200"} \d', text)
    assert 'route="/v1/files/{file_id}",status="404"' in text
    assert 'route="unmatched"' in text
    for word in ("metered", "team", "file-none", "wp-admin", key):
        assert word not in text


def test_metrics_are_for_this_machine_or_with_a_token(http: httpx.Client) -> None:
    forwarded = http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
    assert forwarded.status_code == 404
    assert http.get("/metrics", headers={"Forwarded": "for=203.0.113.9"}).status_code == 404
    with variables(CELORA_API_METRICS_TOKEN="scrape-it"):
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers=bearer("wrong")).status_code == 401
        assert http.get("/metrics", headers=bearer("scrape-it")).status_code == 200
    with variables(CELORA_API_METRICS_TOKEN=""):  # left empty is not open to all
        assert http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 404


def test_the_page_describes_every_error_and_the_keys(http: httpx.Client) -> None:
    page = http.get("/openapi.json").json()
    assert "HTTPValidationError" not in page["components"]["schemas"]
    assert page["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, operations in page["paths"].items():
        for verb, operation in operations.items():
            assert operation["summary"], (verb, path)
            if path.startswith("/v1/"):
                assert operation["security"] == [{"HTTPBearer": []}], (verb, path)
                assert {"400", "401", "403", "404", "429"} <= set(operation["responses"])


def test_the_page_takes_nothing_from_another_server(http: httpx.Client) -> None:
    docs = http.get("/docs")
    assert docs.status_code == 200
    assert "://" not in docs.headers["content-security-policy"]
    found = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    parts = [name for name in found if not name.startswith("data:")]
    assert sorted(parts) == ["docs/swagger-ui-bundle.js", "docs/swagger-ui.css"]
    for name in parts:
        assert len(http.get(f"/{name}").raise_for_status().content) > 100_000
    assert "url: 'openapi.json'" in docs.text
    assert http.get("/docs/../main.py").status_code == 404
    assert http.get("/docs/main.py").json()["error"]["code"] == "not_found"

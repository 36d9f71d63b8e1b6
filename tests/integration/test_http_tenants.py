"""Every endpoint of the HTTP API, asked by its owner, by another tenant, and with keys that must
not open it. A route that has no row here fails the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from celora.api.app import create_app
from celora.api.keys import SCOPES, create_key
from celora.api.result_files import result_file_id
from models.queries.api_keys import revoke_key
from models.session import transaction
from tests import records, stored
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
OWNER, STRANGER = "owners", "strangers"


class World:
    """A server, keys of two tenants, and what the first one owns."""

    def __init__(self, server: ApiServer, http: httpx.Client) -> None:
        self.http = http
        self.server = server
        self.keys = {
            tenant: {scope: key_for(tenant, scope) for scope in ("read", "submit", "admin")}
            for tenant in (OWNER, STRANGER)
        }
        revoked = create_key(tenant=OWNER, user="ann", scopes=["admin"])
        with transaction() as session:
            revoke_key(session, revoked.id)
        self.revoked = revoked.key
        self.file_id = self.file()

    def ask(self, row: Row, key: str | None, things: dict[str, str]) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        body = row.body(self) if row.body else {}
        return self.http.request(row.verb, row.path.format(**things), headers=headers, **body)

    def file(self) -> str:
        key = self.keys[OWNER]["submit"]
        answer = self.http.post(
            "/v1/files",
            headers={"Authorization": f"Bearer {key}"},
            files={"file": ("rows.jsonl", json.dumps(ROW).encode())},
            data={"purpose": "fine-tune"},
        )
        return str(answer.json()["id"])

    def job(self) -> str:
        return records.submit(OWNER)

    def result(self) -> str:
        return result_file_id(stored.trained(OWNER))

    def model(self) -> str:
        headers = {"Authorization": f"Bearer {self.keys[OWNER]['read']}"}
        answer = self.http.get(f"/v1/fine_tuning/jobs/{stored.trained(OWNER)}", headers=headers)
        return str(answer.json()["fine_tuned_model"])


def upload(_: World) -> dict[str, Any]:
    return {
        "files": {"file": ("rows.jsonl", json.dumps(ROW).encode())},
        "data": {"purpose": "fine-tune"},
    }


def new_job(world: World) -> dict[str, Any]:
    return {"json": {"model": "owner/tiny", "training_file": world.file_id}}


def short_job(world: World) -> dict[str, Any]:
    return {"json": {"base_model": "owner/tiny", "dataset": world.file_id}}


def chat(_: World) -> dict[str, Any]:
    return {"json": {"model": "ft:none", "messages": []}}


@dataclass(frozen=True)
class Row:
    verb: str
    path: str
    scope: str
    things: Mapping[str, Callable[[World], str]] = field(default_factory=dict)
    body: Callable[[World], dict[str, Any]] | None = None
    own: tuple[int, ...] = (200,)  # what its owner may be answered
    names_file: bool = False  # its body names the owner's file: 400 for another tenant

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


JOB = {"job_id": World.job}
FILE = {"file_id": World.file}
RESULT = {"result_id": World.result}
MODEL = {"model": World.model}
ROWS = [
    Row("POST", "/v1/files", "submit", body=upload),
    Row("GET", "/v1/files", "read"),
    Row("GET", "/v1/files/{file_id}", "read", FILE),
    Row("DELETE", "/v1/files/{file_id}", "submit", FILE),
    Row("GET", "/v1/files/{file_id}/content", "read", FILE),
    Row("GET", "/v1/files/{result_id}", "read", RESULT),
    Row("GET", "/v1/files/{result_id}/content", "read", RESULT),
    Row("POST", "/v1/fine_tuning/jobs", "submit", body=new_job, names_file=True),
    Row("GET", "/v1/fine_tuning/jobs", "read"),
    Row("GET", "/v1/fine_tuning/jobs/{job_id}", "read", JOB),
    Row("POST", "/v1/fine_tuning/jobs/{job_id}/cancel", "submit", JOB),
    Row("POST", "/v1/fine_tuning/jobs/{job_id}/pause", "submit", JOB),
    Row("POST", "/v1/fine_tuning/jobs/{job_id}/resume", "submit", JOB),
    Row("GET", "/v1/fine_tuning/jobs/{job_id}/events", "read", JOB),
    Row("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints", "read", JOB),
    Row("GET", "/v1/fine_tuning/jobs/{job_id}/stream", "read", JOB),
    Row("GET", "/v1/models", "read"),
    Row("GET", "/v1/models/{model}", "read", MODEL),
    Row("DELETE", "/v1/models/{model}", "admin", MODEL),
    Row("POST", "/finetune", "submit", body=short_job, own=(200, 201), names_file=True),
    Row("GET", "/finetune/{job_id}", "read", JOB),
    Row("POST", "/v1/chat/completions", "read", body=chat, own=(404,)),
]
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
rows = pytest.mark.parametrize("row", ROWS, ids=str)


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:  # noqa: ARG001 (what it serves from)
    folder = tmp_path_factory.mktemp("artifacts")
    with (
        variables(CELORA_ARTIFACTS=str(folder)),
        serving() as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield World(server, http)


def test_every_route_has_its_row() -> None:
    page = create_app().openapi()["paths"]
    routes = {(verb.upper(), path) for path, verbs in page.items() for verb in verbs}
    rows = {(row.verb, row.path.replace("{result_id}", "{file_id}")) for row in ROWS}
    assert routes == rows | OPEN


def things_of(world: World, row: Row) -> dict[str, str]:
    return {name: make(world) for name, make in row.things.items()}


@rows
def test_its_owner(world: World, row: Row) -> None:
    things = things_of(world, row)
    if row.path.endswith("/stream"):  # it stays open while the job waits
        key = world.keys[OWNER][row.scope]
        url, headers = row.path.format(**things), {"Authorization": f"Bearer {key}"}
        with world.http.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200
        return
    answer = world.ask(row, world.keys[OWNER][row.scope], things)
    assert answer.status_code in row.own, answer.text


@rows
def test_another_tenant(world: World, row: Row) -> None:
    things = things_of(world, row)
    answer = world.ask(row, world.keys[STRANGER]["admin"], things)
    if things:
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "not_found"
    elif row.names_file:
        assert answer.status_code == 400, answer.text
    elif row.verb == "GET":
        mine = (world.file_id, world.job())
        assert answer.status_code == 200
        assert not any(one in answer.text for one in mine)


@rows
@pytest.mark.parametrize("kind", ["revoked", "none"])
def test_no_key_that_opens_anything(world: World, row: Row, kind: str) -> None:
    things = things_of(world, row)
    answer = world.ask(row, world.revoked if kind == "revoked" else None, things)
    assert answer.status_code == 401, answer.text
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("row", "scope"),
    [(row, scope) for row in ROWS for scope in SCOPES[: SCOPES.index(row.scope)]],
    ids=str,
)
def test_a_key_of_the_owner_without_the_scope(world: World, row: Row, scope: str) -> None:
    answer = world.ask(row, world.keys[OWNER][scope], things_of(world, row))
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "insufficient_permissions"

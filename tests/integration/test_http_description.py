"""The server against its own description: whatever schemathesis asks, every answer is one that is
described, and none is a fault of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from models.queries import jobs
from models.session import transaction
from models.states import StopReason
from tests import records
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    folder = tmp_path_factory.mktemp("artifacts")
    with variables(CELORA_ARTIFACTS=str(folder)), serving() as running:
        yield running


@pytest.fixture(scope="module")
def known(server: ApiServer) -> dict[str, str]:
    """Objects that are there, for half of the requests that name one. The job is over: a stream of
    it ends."""
    job_id = records.submit("described")
    with transaction() as session:
        jobs.request_stop(session, job_id, StopReason.CANCEL)
    row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    answer = httpx.post(
        f"{server.v1}/files",
        headers={"Authorization": f"Bearer {key_for('described')}"},
        files={"file": ("rows.jsonl", row)},
        data={"purpose": "fine-tune"},
    )
    return {"job_id": job_id, "file_id": answer.json()["id"]}


def examine(server: ApiServer, known: dict[str, str], *, examples: int) -> int:
    """Ask each operation that often, with what the description allows and with what it does not.

    Returns how many requests were sent.
    """
    headers = {"Authorization": f"Bearer {key_for('described', 'admin')}"}
    bounded = hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    asked = 0

    def asking(operation: Any) -> Callable[[], None]:
        @seed(1)
        @bounded
        @given(data=st.data())
        def ask(data: Any) -> None:
            nonlocal asked
            mode = data.draw(st.sampled_from(GenerationMode))
            case = data.draw(operation.as_strategy(generation_mode=mode))
            for name, value in known.items():
                if name in (case.path_parameters or {}) and data.draw(st.booleans()):
                    case.path_parameters[name] = value
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)
            asked += 1

        return ask

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        asking(result.ok())()
    return asked


def test_a_few_requests_of_each_kind(server: ApiServer, known: dict[str, str]) -> None:
    assert examine(server, known, examples=3) > 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_requests_of_each_kind(server: ApiServer, known: dict[str, str]) -> None:
    assert examine(server, known, examples=60) > 800

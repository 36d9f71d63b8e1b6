"""Chats and model names that pass through to another server: a small real one plays vLLM."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from openai import OpenAI

from models.queries import products
from models.session import transaction
from models.states import Outcome
from tests import records
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables

WORDS = ["one", " two", " three"]


class Upstream(ThreadingHTTPServer):
    """Answers like a server of OpenAI's protocol, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []  # authorization, body
        self.go_on = threading.Event()  # set: a stream sends its second word


class _Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        """As vLLM does: an adapter names its parent."""
        bases: list[dict[str, Any]] = [
            {"id": name, "root": name, "parent": None}
            for name in ("meta/served-base", "overloaded")
        ]
        adapters = ("ft:somebody:elses::AAAAAAAA", "secret-lora")
        loras = [{"id": name, "parent": "meta/served-base"} for name in adapters]
        self._answer({"object": "list", "data": [*bases, *loras]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.headers["authorization"], body))
        if body["model"] == "overloaded":
            self._answer(
                {"error": {"message": "busy", "type": "x", "param": None, "code": None}}, 429
            )
        elif body.get("stream"):
            self._stream()
        else:
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(
                {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"]}
                | {"choices": [choice]}
            )

    def _answer(self, data: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number, word in enumerate(WORDS):
            if number == 1 and not self.server.go_on.wait(60):
                return
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            self.wfile.write(b"data: %s\n\n" % json.dumps(chunk | {"choices": [choice]}).encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        """Silent."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(database: str, upstream: Upstream) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    url = f"http://127.0.0.1:{upstream.server_port}/v1"
    with (
        variables(CELORA_SERVING_URL=url, CELORA_SERVING_KEY="upstream-key"),
        serving() as running,
    ):
        yield running


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key=key_for("servants"), max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tuned(client: OpenAI) -> str:
    """The name of a model that a job of the tenant has left."""
    claim = records.running(tenant="servants", evaluate=False, name="bot")
    with transaction() as session:
        products.register_artifact(
            session, claim.job_id, claim.fence, kind="adapter", url="/nowhere", size_bytes=1
        )
    records.end(claim.job_id, claim.fence, Outcome.COMPLETED)
    return str(client.fine_tuning.jobs.retrieve(claim.job_id).fine_tuned_model)


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    said: Any = [{"role": "user", "content": "count"}]
    return client.chat.completions.create(model=model, messages=said, **more)


def test_a_chat_goes_through_unchanged(client: OpenAI, upstream: Upstream, tuned: str) -> None:
    answer = ask(client, tuned, temperature=0.5, extra_body={"top_k": 3})
    assert answer.choices[0].message.content == "one two three"
    authorization, body = upstream.asked[-1]
    assert authorization == "Bearer upstream-key"  # never the caller's
    assert (body["model"], body["temperature"], body["top_k"]) == (tuned, 0.5, 3)


def test_a_stream_comes_as_it_is_made(client: OpenAI, upstream: Upstream) -> None:
    """The second word is sent only after the first has arrived."""
    words = []
    for chunk in ask(client, "meta/served-base", stream=True):
        words.append(chunk.choices[0].delta.content)
        upstream.go_on.set()
    assert words == WORDS


def test_what_the_server_refuses_is_told(client: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "overloaded")
    assert "busy" in refused.value.message


def test_nobody_talks_to_a_model_of_others(
    client: OpenAI, server: ApiServer, upstream: Upstream, tuned: str
) -> None:
    asked = len(upstream.asked)
    with OpenAI(base_url=server.v1, api_key=key_for("others"), max_retries=0) as stranger:
        for name in (tuned, f"{tuned}:ckpt-step-1", "ft:anything", "secret-lora", "unknown"):
            with pytest.raises(openai.NotFoundError):
                ask(stranger, name)
    with pytest.raises(openai.NotFoundError):
        ask(client, tuned.replace("bot", "other"))
    assert len(upstream.asked) == asked


def test_served_models_are_listed(client: OpenAI, tuned: str) -> None:
    """Of fine-tuned ones the tenant's own alone."""
    listed = [model.id for model in client.models.list()]
    assert listed == [tuned, "meta/served-base", "overloaded"]
    assert client.models.retrieve("meta/served-base").id == "meta/served-base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("meta/unknown")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("secret-lora")


def test_a_server_that_is_away(database: str) -> None:  # noqa: ARG001 (what it serves from)
    with (
        variables(CELORA_SERVING_URL="http://127.0.0.1:9/v1"),
        serving() as server,
        OpenAI(base_url=server.v1, api_key=key_for("alone"), max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as away:
            ask(client, "any/base")
        assert (away.value.status_code, away.value.code) == (502, "serving_unavailable")
        assert client.models.list().data == []

"""Files over HTTP, driven by the real client: uploaded, looked at, listed, read and deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from models import store
from models.settings import settings
from tests.api_server import ApiServer, key_for, serving
from tests.environment import variables

LIMIT = 3 * 1024**2


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:  # noqa: ARG001 (what it serves from)
    artifacts = tmp_path_factory.mktemp("artifacts")
    with (
        variables(CELORA_ARTIFACTS=str(artifacts), CELORA_API_FILE_BYTES=str(LIMIT)),
        serving() as running,
    ):
        yield running


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key=key_for("files"), max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def stranger(server: ApiServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key=key_for("strangers"), max_retries=0) as made:
        yield made


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def rows(count: int = 12, *, words: int = 1) -> bytes:
    lines = (json.dumps(chat(f"question {n}", f"answer {n} " * words)) for n in range(count))
    return "\n".join(lines).encode()


def upload(client: OpenAI, content: bytes, name: str = "train.jsonl", **more: Any) -> Any:
    return client.files.create(file=(name, content), purpose="fine-tune", **more)


def test_a_file_comes_back_as_it_went(client: OpenAI) -> None:
    content = rows()
    file = upload(client, content)
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(content), "train.jsonl")
    assert (file.purpose, file.status, file.expires_at) == ("fine-tune", "processed", None)
    assert file.model_extra["sha256"] == hashlib.sha256(content).hexdigest()
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content


def test_a_large_file_is_looked_at_in_a_process(client: OpenAI) -> None:
    good = rows(300, words=900)
    assert len(good) > 2 * 1024**2
    assert upload(client, good).bytes == len(good)
    with pytest.raises(openai.BadRequestError, match="line 301: "):
        upload(client, good + b'\n{"messages": 3}')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(rows(2) + b"\nnonsense\n", "line 3: ", id="no-json"),
        pytest.param(rows(3) + b'\n{"messages": []}', "line 4: ", id="no-messages"),
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"\x1f\x8b\x08\x00rest", "not JSON Lines", id="gzip"),
        pytest.param(b"PK\x03\x04rest", "not JSON Lines", id="zip"),
        pytest.param(b"PAR1rest", "not JSON Lines", id="parquet"),
        pytest.param(b"question,answer\n1,2\n", "not JSON Lines", id="csv"),
    ],
)
def test_what_cannot_be_trained_on_is_told_at_once(
    client: OpenAI, content: bytes, message: str
) -> None:
    before = [file.id for file in client.files.list()]
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        upload(client, content)
    assert (caught.value.code, caught.value.param) == ("invalid_data", "file")
    assert str(settings().artifacts_url) not in str(caught.value)
    assert [file.id for file in client.files.list()] == before
    folder = Path(store.files_url())
    assert not list(folder.rglob("*.incoming")), "half an upload was left"


def pairs(count: int = 12) -> bytes:
    """As OpenAI's preference data has them."""
    lines = (
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": f"question {n}"}]},
                "preferred_output": [{"role": "assistant", "content": "yes"}],
                "non_preferred_output": [{"role": "assistant", "content": "no"}],
            }
        )
        for n in range(count)
    )
    return "\n".join(lines).encode()


def test_preference_pairs_are_training_data_too(client: OpenAI) -> None:
    assert upload(client, pairs()).bytes == len(pairs())
    assert upload(client, b'{"chosen": "a b", "rejected": "a c"}\n').id
    named = {"columns": {"chosen": "good", "rejected": "bad"}}
    assert upload(client, b'{"good": "a b", "bad": "a c"}\n', extra_body=named).id
    with pytest.raises(openai.BadRequestError, match=r"line 13: `input\.messages` is empty"):
        upload(client, pairs() + b'\n{"input": {"messages": []}, "preferred_output": []}')
    with pytest.raises(openai.BadRequestError, match="line 13: "):
        upload(client, pairs() + b"\n" + rows(1))


def test_a_file_over_the_limit(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        upload(client, rows(400, words=1200))
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\x1b[31mb", "x" * 4000, "ünïcode 名.jsonl"]
)
def test_a_name_is_never_a_path(client: OpenAI, name: str) -> None:
    file = upload(client, rows(), name=name)
    assert "/" not in file.filename
    assert file.filename.isprintable()
    assert len(file.filename) <= 255
    answer = client.files.content(file.id)
    assert answer.content == rows()
    folders = list(Path(store.files_url()).glob(f"*/{file.id}/*"))
    assert [path.name for path in folders] == ["data.jsonl"]


def test_other_purposes_and_shapes_of_request(client: OpenAI, server: ApiServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.jsonl", rows()), purpose="batch")
    assert caught.value.param == "purpose"
    headers = {"Authorization": f"Bearer {client.api_key}"}
    bodies: list[dict[str, Any]] = [
        {"json": {}},
        {"content": b"x"},
        {"data": {"purpose": "fine-tune"}},
        {"content": b"x", "headers": headers | {"content-type": "multipart/form-data"}},
        {"content": b"x", "headers": headers | {"content-type": "multipart/form-data; boundary=x"}},
    ]
    for body in bodies:
        answer = httpx.post(f"{server.v1}/files", **({"headers": headers} | body))
        assert answer.status_code == 400, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_files_are_paged_while_others_arrive(server: ApiServer) -> None:
    with OpenAI(base_url=server.v1, api_key=key_for("pages"), max_retries=0) as client:
        made = [upload(client, rows(), name=f"{n}.jsonl").id for n in range(5)]
        newest = client.files.list(limit=2)
        seen = [file.id for file in newest.data]
        upload(client, rows(), name="late.jsonl")
        while newest.has_next_page():
            newest = newest.get_next_page()
            seen += [file.id for file in newest.data]
        assert seen == made[::-1]
        assert [file.id for file in client.files.list(order="asc", limit=3)][:5] == made
        assert not client.files.list(purpose="batch").data
        with pytest.raises(openai.BadRequestError):
            client.files.list(limit=0)
        gone = [client.files.delete(file.id).id for file in client.files.list(limit=2)]
        assert gone[1:] == made[::-1], "whoever deletes page by page gets to the end"


def test_another_tenants_file_is_not_there(client: OpenAI, stranger: OpenAI) -> None:
    file = upload(client, rows())
    for ask in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(file.id)
        assert caught.value.code == "not_found"
    assert stranger.files.list().data == []
    with pytest.raises(openai.NotFoundError):
        stranger.files.list(after=file.id)
    assert client.files.retrieve(file.id).id == file.id


def test_a_deleted_file_is_gone_from_the_store(client: OpenAI) -> None:
    file = upload(client, rows())
    assert client.files.delete(file.id).deleted
    assert not list(Path(store.files_url()).glob(f"*/{file.id}"))
    with pytest.raises(openai.NotFoundError):
        client.files.delete(file.id)


def test_rows_of_no_usual_shape_come_with_their_columns(client: OpenAI) -> None:
    content = b'{"q": "What is 2 + 2?", "a": "4"}\n{"q": "What is 3 + 3?", "a": "6"}'
    with pytest.raises(openai.BadRequestError, match=r"no known shape.* which part in `columns`"):
        upload(client, content)
    named = {"columns": {"prompt": "q", "completion": "a"}}
    assert upload(client, content, extra_body=named).bytes == len(content)


def test_an_end_of_its_own(client: OpenAI) -> None:
    file = upload(client, rows(), expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError) as caught:
        upload(client, rows(), expires_after={"anchor": "created_at", "seconds": 5})
    assert caught.value.param == "expires_after"

"""The hub's real client against a hub on loopback; each resolve in a process of its own, because
the client reads HF_ENDPOINT and HF_HOME when it is imported."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.trainer.tiny_base import random_base
from tests.hub_server import HubServer

_RESOLVE = """
import json, sys
from gpu_worker.bases import resolve
from models.errors import CeloraError
from training_data.access import Access, reading_as
name, revision, weights, code, token = json.loads(sys.argv[1])
try:
    with reading_as(Access(hub_token=token)):
        base = resolve(name, revision, weights=weights, trust_remote_code=code)
    print(json.dumps({"path": str(base.path), "name": base.name, "revision": base.revision}))
except CeloraError as error:
    print(json.dumps({"error": error.record()}))
"""


@dataclass
class Client:
    """Resolves as a worker does, with a model cache of its own."""

    endpoint: str
    home: Path

    def start(
        self,
        name: str = "owner/tiny",
        revision: str | None = None,
        *,
        weights: bool = True,
        code: bool = False,
        token: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_ETAG_TIMEOUT": "5"}
        return subprocess.Popen(
            [sys.executable, "-c", _RESOLVE, json.dumps([name, revision, weights, code, token])],
            env=known | own | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def resolve(self, *what: Any, **how: Any) -> dict[str, Any]:
        """The base, or {"error": …}; arguments as `start`."""
        with self.start(*what, **how) as process:
            answer, _ = process.communicate(timeout=60)
        result: dict[str, Any] = json.loads(answer)
        return result

    def refusal(self, *what: Any, **how: Any) -> str:
        """The error's sentence, where it is for good; its remedy must be there too."""
        return self._error("invalid_base_model", *what, **how)

    def absence(self, *what: Any, **how: Any) -> str:
        """The same where it may be another matter later."""
        return self._error("unavailable", *what, **how)

    def _error(self, expected: str, *what: Any, **how: Any) -> str:
        error = self.resolve(*what, **how)["error"]
        assert error["code"] == expected, error
        assert error["remedy"]
        return str(error["message"])


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub.url, tmp_path / "hf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with what published ones often have beside it."""
    folder = random_base(tmp_path / "base", hidden=32, layers=1, vocab=300)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_bytes(b"the weights once more")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    return folder


_SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def _names(path: str) -> set[str]:
    return {str(file.relative_to(path)) for file in Path(path).rglob("*")}


def test_a_branch_is_pinned_and_only_safe_files_come(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commit = hub.add("owner/tiny", folder)

    base = client.resolve()

    assert (base["name"], base["revision"]) == ("owner/tiny", commit)
    assert _names(base["path"]) == _SMALL | {"model.safetensors"}
    got = Path(base["path"], "model.safetensors").read_bytes()
    assert got == (folder / "model.safetensors").read_bytes()


def test_a_pinned_commit_outlives_the_branch_that_moved(
    hub: HubServer, client: Client, folder: Path
) -> None:
    old = hub.add("owner/tiny", folder)
    (folder / "chat_template.jinja").write_text("new")
    new = hub.add("owner/tiny", folder)
    hub.add("owner/tiny", folder, revision="v1.0")

    assert client.resolve()["revision"] == new
    assert client.resolve(revision="v1.0")["revision"] == new
    pinned = client.resolve(revision=old)
    assert pinned["revision"] == old
    assert Path(pinned["path"], "chat_template.jinja").read_text() != "new"


def test_preparing_data_fetches_no_weights(hub: HubServer, client: Client, folder: Path) -> None:
    commit = hub.add("owner/tiny", folder)

    small = client.resolve(weights=False)

    assert small["revision"] == commit
    assert _names(small["path"]) == _SMALL
    assert not any(request.startswith("GET /cdn") for request in hub.requests)
    assert "model.safetensors" in _names(client.resolve()["path"])


def test_what_is_cached_is_not_fetched_again(hub: HubServer, client: Client, folder: Path) -> None:
    commit = hub.add("owner/tiny", folder)
    client.resolve()
    hub.requests.clear()

    client.resolve()
    assert not hub.downloads()
    hub.requests.clear()
    client.resolve(revision=commit)
    assert not hub.requests


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_the_cache_serves_while_the_hub_is_away(
    hub: HubServer, client: Client, folder: Path, environment: dict[str, str]
) -> None:
    commit = hub.add("owner/tiny", folder)
    client.resolve(weights=False)
    hub.down = True

    for revision in (None, commit):
        found = client.resolve(revision=revision, weights=False, environment=environment)
        assert found.get("revision") == commit, found
    # A hub that is switched off here stays so, however often it is asked.
    if environment:
        assert "did not give the model" in client.refusal("owner/other", environment=environment)
    else:
        assert "did not answer" in client.absence("owner/other")


@pytest.mark.slow  # the client itself tries for half a minute
def test_a_hub_that_is_down_when_the_weights_are_fetched_may_be_asked_again(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commit = hub.add("owner/tiny", folder)
    client.resolve(weights=False)
    hub.down = True
    assert "did not answer" in client.absence(revision=commit)
    hub.down = False
    assert client.resolve(revision=commit)["revision"] == commit


def test_nobody_listening_is_explained(client: Client) -> None:
    assert "did not answer" in client.absence(environment={"HF_ENDPOINT": "http://127.0.0.1:9"})


def test_a_hub_that_never_answers_is_given_up(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = client.absence(environment={"HF_ENDPOINT": endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert "did not answer" in said


def test_names_that_mean_nothing_are_explained(
    hub: HubServer, client: Client, folder: Path
) -> None:
    hub.add("owner/tiny", folder)

    assert "neither a folder here nor a model on the hub" in client.refusal("owner/nothing")
    assert "no revision 'v9'" in client.refusal("owner/tiny", "v9")
    assert "no revision" in client.refusal("owner/tiny", "0" * 40)


def test_a_gated_model_needs_the_token(hub: HubServer, client: Client, folder: Path) -> None:
    hub.add("owner/tiny", folder, token="hf_secret")

    assert "gated" in client.refusal("owner/tiny")
    assert "gated" in client.refusal("owner/tiny", environment={"HF_TOKEN": "hf_wrong"})
    base = client.resolve(environment={"HF_TOKEN": "hf_secret"})
    assert "model.safetensors" in _names(base["path"])


def test_a_gated_model_in_the_cache_serves_those_whose_token_opens_it(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commit = hub.add("owner/tiny", folder, token="hf_one")
    assert client.resolve(token="hf_one")["revision"] == commit

    assert "gated" in client.refusal("owner/tiny", commit, token="hf_two")
    assert "gated" in client.refusal("owner/tiny", commit)
    hub.set_tokens("owner/tiny", "hf_one", "hf_two")
    hub.requests.clear()
    assert client.resolve(revision=commit, token="hf_two")["revision"] == commit
    assert not hub.downloads()
    hub.set_tokens("owner/tiny", "hf_two")
    assert "gated" in client.refusal("owner/tiny", commit, token="hf_one")
    cache = "".join(p.read_text() for p in client.home.rglob("celora-access.json"))
    assert '"open": false' in cache
    assert "hf_" not in cache


@pytest.mark.slow  # the client itself tries for a while
def test_while_the_hub_is_away_its_last_word_on_a_gated_model_holds(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commit = hub.add("owner/tiny", folder, token="hf_one")
    client.resolve(token="hf_one")
    hub.set_tokens("owner/tiny", "hf_two")
    client.resolve(token="hf_two")
    client.refusal(token="hf_one")
    hub.down = True
    offline = {"HF_HUB_OFFLINE": "1"}
    assert client.resolve(revision=commit, token="hf_two")["revision"] == commit
    assert client.resolve(revision=commit, token="hf_two", environment=offline)["path"]
    assert "did not answer" in client.absence("owner/tiny", commit, token="hf_one")
    assert client.refusal("owner/tiny", commit, environment=offline)


def test_the_hubs_last_word_does_not_hold_for_ever_nor_for_those_it_never_answered(
    hub: HubServer, client: Client, folder: Path
) -> None:
    commit = hub.add("owner/tiny", folder, token="hf_one")
    client.resolve(token="hf_one", weights=False)
    hub.down = True

    def asked(token: str | None, days: str = "7", **more: str) -> dict[str, Any]:
        environment = {"CELORA_HUB_AWAY_DAYS": days, "HF_HUB_DOWNLOAD_TIMEOUT": "1", **more}
        return client.resolve(
            "owner/tiny", commit, token=token, weights=False, environment=environment
        )

    assert asked("hf_one")["revision"] == commit
    (note,) = client.home.rglob("celora-access.json")
    noted = json.loads(note.read_text())
    (account,) = noted["accounts"]
    noted["accounts"][account] -= 6.9 * 86_400
    note.write_text(json.dumps(noted))
    assert asked("hf_one")["revision"] == commit
    assert asked("hf_one", "6.5")["error"]["code"] == "unavailable"
    assert asked("hf_one", "0", HF_HUB_OFFLINE="1")["revision"] == commit
    note.write_text(json.dumps(noted | {"accounts": [account]}))  # as an earlier version wrote it
    assert asked("hf_one")["revision"] == commit
    note.unlink()
    assert asked("hf_two")["error"]["code"] == "unavailable"
    assert asked(None, HF_HUB_OFFLINE="1")["revision"] == commit


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "pickled (pytorch_model.bin)"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), "not a model"),
        (lambda folder: (folder / "config.json").write_text("<html>"), "config.json is broken"),
    ],
)
def test_what_is_no_model_is_refused_before_its_weights_come(
    hub: HubServer,
    client: Client,
    folder: Path,
    breaking: Callable[[Path], None],
    message: str,
) -> None:
    (folder / "consolidated.safetensors").unlink()
    breaking(folder)
    hub.add("owner/tiny", folder)

    assert message in client.refusal()
    assert not any("/cdn/" in request for request in hub.requests)


def test_its_own_code_comes_only_with_the_administrators_word(
    hub: HubServer, client: Client, folder: Path
) -> None:
    hub.add("owner/tiny", folder)

    assert "may not run its own code" in client.refusal(code=True)
    assert not hub.requests
    allowed = client.resolve(code=True, environment={"CELORA_REMOTE_CODE_MODELS": "owner/tiny"})
    assert "modeling_own.py" in _names(allowed["path"])


def test_a_killed_download_goes_on_and_ends_whole(
    hub: HubServer, client: Client, folder: Path
) -> None:
    hub.add("owner/tiny", folder)
    hub.stall.set()
    with client.start() as process:
        deadline = time.monotonic() + 60
        while not any("/cdn/" in request for request in hub.requests):
            assert time.monotonic() < deadline, "the download never began"
            time.sleep(0.02)
        process.kill()
    hub.stall.clear()

    base = client.resolve()

    got = Path(base["path"], "model.safetensors").read_bytes()
    assert got == (folder / "model.safetensors").read_bytes()


def test_several_workers_fetch_the_same_model_at_once(
    hub: HubServer, client: Client, folder: Path
) -> None:
    hub.add("owner/tiny", folder)

    with client.start() as one, client.start() as two, client.start() as three:
        answers = [json.loads(worker.communicate(timeout=60)[0]) for worker in (one, two, three)]

    assert all(answer == answers[0] and "revision" in answer for answer in answers)
    got = Path(answers[0]["path"], "model.safetensors").read_bytes()
    assert got == (folder / "model.safetensors").read_bytes()

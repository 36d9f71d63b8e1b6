"""Hub data sets, from a hub on loopback that the real client talks to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_tokenizers import make_tokenizer
from tests.hub_server import HubServer

pytestmark = pytest.mark.torch  # `datasets` loads torch where it is installed

# In a process of its own: the hub's address is read when its client is first imported.
_CODE = """
import json, sys
from pathlib import Path
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from models.errors import CeloraError
from models.spec import JobSpec
from training_data.prepare import input_digest, prepare
base, folder = sys.argv[2], Path(sys.argv[3])
spec = JobSpec(base_model="base", **json.loads(sys.argv[4]))
try:
    digest = input_digest(spec, base)
    prepared = prepare(spec, tokenizer_path=base, scratch=folder)
    print(json.dumps({"same": prepared.digest == digest, **prepared.verdict}))
except CeloraError as error:
    print(json.dumps(error.record()))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def prepared(
    hub: HubServer, folder: Path, *, without: tuple[str, ...] = (), **fields: Any
) -> dict[str, Any]:
    """The verdict of preparing a hub data set, or the record of the error."""
    base = make_tokenizer(folder / "base")
    arguments = (json.dumps(without), str(base), str(folder / "out"), json.dumps(fields))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CODE, *arguments],
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def publish(hub: HubServer, folder: Path, *files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name in files:
        records = [
            {"id": n, "prompt": f"{name} {n}\n", "completion": str(n)}
            for n in range(200 if name.startswith("train") else 30)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / name).write_text(lines)
    return hub.add("owner/data", folder)


def test_a_data_set_is_streamed_at_one_commit(hub: HubServer, tmp_path: Path) -> None:
    commit = publish(hub, tmp_path / "data", "train.jsonl")
    verdict = prepared(hub, tmp_path, dataset="owner/data")
    assert verdict["same"]
    assert verdict["rows_read"] == 200
    assert verdict["digests"]["data"] == f"hub:owner/data@{commit}::train"


def test_evaluation_data_comes_from_the_split_that_is_for_it(
    hub: HubServer, tmp_path: Path
) -> None:
    publish(hub, tmp_path / "data", "train.jsonl", "test.jsonl")
    verdict = prepared(hub, tmp_path, dataset="owner/data", eval_dataset="owner/data")
    assert (verdict["rows_train"], verdict["rows_eval"]) == (200, 30)
    assert verdict["digests"]["eval_data"].endswith("::test")


def test_what_cannot_be_had_is_said(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path / "data", "train.jsonl")
    missing = prepared(hub, tmp_path, dataset="owner/other")
    assert missing["code"] == "invalid_input"
    assert "neither a file here nor a data set on the hub" in missing["message"]
    revision = prepared(hub, tmp_path, dataset="owner/data", dataset_revision="v9")
    assert "at revision v9" in revision["message"]
    split = prepared(hub, tmp_path, dataset="owner/data", dataset_split="dev")
    assert split["code"] == "invalid_input"
    library = prepared(hub, tmp_path, dataset="owner/data", without=("datasets",))
    assert "needs the `datasets` package" in library["message"]
    hub.down = True
    assert prepared(hub, tmp_path, dataset="owner/data")["code"] == "unavailable"


@pytest.mark.slow
def test_an_answer_in_earnest_is_for_good(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, tmp_path / "data", "train.jsonl")
    hub.add("owner/gated", tmp_path / "data", token="hf_secret")
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": 1}\n[}')
    hub.add("owner/broken", tmp_path / "data")
    for name in ("owner/gated", "owner/broken"):
        assert prepared(hub, tmp_path, dataset=name)["code"] == "invalid_input"

"""The digest: of the very bytes that were used, wherever they lie, and of what else matters."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import InputError
from models.spec import JobSpec
from tests.data_samples import made, row, write
from tests.data_tokenizers import make_tokenizer
from training_data.files import DataFile, held_still
from training_data.prepare import input_digest, prepare


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tokenizer(tmp_path_factory.mktemp("base")))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row(n) for n in range(200)])


def served(store_url: str, base: str, folder: Path, **fields: Any) -> dict[str, Any]:
    spec = JobSpec(base_model="base", dataset=store_url, **fields)
    digest = input_digest(spec, base)
    prepared = prepare(spec, tokenizer_path=base, scratch=folder)
    assert prepared.digest == digest
    return prepared.verdict


def test_data_behind_urls(base: str, tmp_path: Path) -> None:
    records = [row(n) for n in range(300)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    files = {"rows.parquet": sink.getvalue(), "rows.jsonl.gz": gzip.compress(write_bytes(records))}
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe(f"/celora-prepare/{name}", content)
        (tmp_path / "www").mkdir(exist_ok=True)
        (tmp_path / "www" / name).write_bytes(content)
    handler = partial(_Quiet, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            for place in ("memory://celora-prepare", address):
                for name, content in files.items():
                    folder = tmp_path / f"{len(place)}-{name}"
                    verdict = served(f"{place}/{name}", base, folder)
                    assert verdict["rows_read"] == 300
                    assert verdict["digests"]["data"] == hashlib.sha256(content).hexdigest()
            with pytest.raises(InputError, match="no such file"):
                served(f"{address}/missing.jsonl", base, tmp_path / "missing")
        finally:
            server.shutdown()
            memory.rm("/celora-prepare", recursive=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def write_bytes(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_the_digest_is_known_before_and_follows_what_matters(
    rows: Path, base: str, tmp_path: Path
) -> None:
    spec = JobSpec(base_model="base", dataset=str(rows))
    digest = input_digest(spec, base)
    assert made(rows, base, tmp_path / "out").digest == digest
    assert input_digest(spec.model_copy(update={"learning_rate": 0.5, "rank": 4}), base) == digest
    for change in ({"max_sequence_length": 64}, {"loss_on": "all"}, {"packing": "on"}):
        assert input_digest(spec.model_copy(update=change), base) != digest
    other = str(make_tokenizer(tmp_path / "other", eos="<end>"))
    assert input_digest(spec, other) != digest
    with rows.open("a") as stream:
        stream.write(json.dumps(row(999)) + "\n")
    changed = input_digest(spec, base)
    assert changed != digest
    assert made(rows, base, tmp_path / "again").digest == changed


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "csv"])
def test_every_reader_digests_the_whole_file(base: str, tmp_path: Path, suffix: str) -> None:
    records = [row(n) for n in range(30)]
    data = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), data)
    elif suffix == "csv":
        lines = [f'"{record["prompt"]}",{record["completion"]}\n' for record in records]
        data.write_text("prompt,completion\n" + "".join(lines))
    elif suffix == "json":
        data.write_text(json.dumps(records) + " " * 200_000)  # more than any parser needs
    else:
        write(data, records)
    verdict = made(data, base, tmp_path / "out").verdict
    assert verdict["rows_read"] == 30
    assert verdict["digests"]["data"] == hashlib.sha256(data.read_bytes()).hexdigest()


def test_a_file_that_changes_under_a_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row(1)]), path)
    file = DataFile("rows.parquet", str(path))

    def read_and_change() -> None:
        with held_still(file, tmp_path, lambda: None), path.open("ab") as stream:
            stream.write(b"more")

    with pytest.raises(InputError, match="was changed while it was read"):
        read_and_change()

"""Rows in files, prepared and read back; a Python of its own for what a process must not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.spec import JobSpec
from training_data.prepare import Prepared, prepare


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"what is {number}?\n", "completion": f"the number {number}"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def made(dataset: Path, base: str, folder: Path, **fields: Any) -> Prepared:
    spec = JobSpec(base_model="base", dataset=str(dataset), **fields)
    return prepare(spec, tokenizer_path=base, scratch=folder)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / name).open("rb") as stream:
        found: list[dict[str, Any]] = pa.ipc.open_stream(stream).read_all().to_pylist()
    return found


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

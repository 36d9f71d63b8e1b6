"""Asks a process of its own, with torch, what a model is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celora.planning.memory import Architecture
from gpu_worker.bases import resolve
from models.errors import BaseModelError, SetupError, SpecError
from models.spec import JobSpec
from models.store import is_local, local_path

_MODULE = "gpu_worker.trainer.architecture"
_SECONDS = 300
_ERRORS = {"invalid_spec": SpecError, "invalid_base_model": BaseModelError}


def architecture_of(spec: JobSpec) -> Architecture:
    """Counts for `spec.base_model`, from its configuration; its weights are not fetched.

    Raises BaseModelError, SpecError, UnavailableError; SetupError where torch is not installed.
    """
    if find_spec("torch") is None:
        raise SetupError(
            "counting a model's parameters needs torch",
            remedy="install celora[train] here, or plan on a GPU machine",
        )
    asked = {
        "config_path": str(_config_folder(spec)),
        "trust_remote_code": spec.trust_remote_code,
        "spec": spec.model_dump(mode="json"),
    }
    done = subprocess.run(
        [sys.executable, "-m", _MODULE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise BaseModelError(
            f"the model could not be built from its configuration: {last}",
            where=spec.base_model,
            remedy="check config.json, and that this version of transformers knows the model",
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    if error := answer.pop("error", None):
        raise _ERRORS.get(error["code"], BaseModelError)(
            error["message"], where=error["where"], remedy=error["remedy"]
        )
    return Architecture(**answer)


def _config_folder(spec: JobSpec) -> Path:
    """Where config.json is. A folder needs nothing else to be planned with, not even weights."""
    if is_local(spec.base_model) and (local_path(spec.base_model) / "config.json").is_file():
        return local_path(spec.base_model)
    base = resolve(
        spec.base_model,
        spec.base_revision,
        weights=False,
        trust_remote_code=spec.trust_remote_code,
    )
    return base.path

"""Finds a base model, on the hub, in a folder or at a URL, and pins what was found.

Imports neither torch nor transformers: preprocessing, the supervisor and `celora pull` use it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gpu_worker import base_hub, base_url
from gpu_worker.base_files import check, content_digest, local_files
from models.errors import BaseModelError
from models.settings import settings
from models.store import is_local, local_path

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Base:
    """A base model that stands on this machine."""

    path: Path  # local folder: config and tokenizer, and the weights if they were asked for
    name: str  # as the user gave it
    revision: str  # hub commit, or "sha256:…" over a folder's content


def resolve(
    base_model: str, revision: str | None = None, *, weights: bool, trust_remote_code: bool = False
) -> Base:
    """The base model as a local folder, fetched where it is not here yet.

    `base_model` is a hub name, a folder, or an fsspec URL. `revision` is a branch, tag or commit
    on the hub; for a folder or URL the content digest of an earlier call, which must still be
    right. With `weights` False only configuration and tokenizer are fetched, enough to prepare
    data, and the revision is the same.

    Raises BaseModelError with a remedy: not found, gated, pickled weights, remote code that the
    administrator has not allowed, no tokenizer, a broken configuration; UnavailableError where a
    hub or store does not answer.
    """
    if trust_remote_code:
        _require_allowed(base_model)
    if not is_local(base_model):
        path, found = base_url.fetch(base_model, weights=weights, code=trust_remote_code)
        return Base(path, base_model, _same(base_model, revision, found))
    folder = local_path(base_model)
    if folder.is_dir():
        files = local_files(folder, code=trust_remote_code)
        check(files, where=base_model)
        return Base(folder, base_model, _same(base_model, revision, content_digest(files)))
    if folder.exists() or not _HUB_NAME.fullmatch(base_model):
        raise BaseModelError(
            "there is no such folder",
            where=base_model,
            remedy="give a folder with config.json and safetensors weights that this machine can "
            "read, or a hub name like owner/model",
        )
    path, commit = base_hub.fetch(base_model, revision, weights=weights, code=trust_remote_code)
    return Base(path, base_model, commit)


def _require_allowed(base_model: str) -> None:
    allowed = [name.strip() for name in settings().remote_code_models.split(",")]
    if base_model not in allowed:
        raise BaseModelError(
            "this model may not run its own code here",
            where=base_model,
            remedy="leave trust_remote_code off, or ask the administrator to name the model in "
            "CELORA_REMOTE_CODE_MODELS",
        )


def _same(base_model: str, wanted: str | None, found: str) -> str:
    """`found`, if it is what was wanted. Raises BaseModelError."""
    if wanted in (None, found):
        return found
    if wanted is not None and wanted.startswith("sha256:"):
        raise BaseModelError(
            "the base model changed after the data was prepared",
            where=base_model,
            remedy="put the earlier files back, or submit the job anew",
        )
    raise BaseModelError(
        f"a folder has no revision {wanted!r}",
        where=base_model,
        remedy="leave base_revision out; the content's digest is recorded instead",
    )

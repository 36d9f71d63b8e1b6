"""The data of a request, as JobSpec names it: an uploaded file, or a place that is allowed."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from celora.api.caller import Caller
from celora.api.errors import ApiError
from celora.api.file_store import resolve_training_file
from models.settings import settings

_FILE_ID = "file-"


def uploaded(session: Session, caller: Caller, file_id: str, *, param: str) -> str:
    """Raises ApiError for a file that cannot be used."""
    return resolve_training_file(session, caller, file_id, param=param)


def allowed(session: Session, caller: Caller, dataset: str, *, param: str) -> str:
    """An uploaded file; a path below CELORA_DATASET_ROOTS; a URL of CELORA_API_DATASET_URLS.

    Whoever sends a request is not on this machine: without those settings no path and no URL is
    read for them, and no name that could be either. Raises ApiError.
    """
    if dataset.startswith(_FILE_ID):
        return uploaded(session, caller, dataset, param=param)
    if "\0" not in dataset and (_is_below_a_root(dataset) or _is_listed(dataset)):
        return dataset
    raise ApiError(
        400,
        "this may not be read for an HTTP request: upload the file, or have the administrator"
        " allow its place (CELORA_DATASET_ROOTS, CELORA_API_DATASET_URLS)",
        code="dataset_not_allowed",
        param=param,
    )


def _is_below_a_root(dataset: str) -> bool:
    if "://" in dataset or not dataset.startswith("/"):
        return False
    # Links are resolved once more where the file is opened, on the machine that reads it.
    path = Path(os.path.realpath(dataset))
    roots = [root for root in settings().dataset_roots.split(os.pathsep) if root]
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)


def _is_listed(dataset: str) -> bool:
    if "://" not in dataset or "::" in dataset or "\\" in dataset:
        return False
    url = urlsplit(dataset)
    path = posixpath.normpath(url.path) if url.path else ""
    if "%" in url.path or ".." in url.path.split("/"):
        return False
    plain = f"{url.scheme}://{url.netloc.lower()}{path}"
    listed = [one.strip() for one in settings().api_dataset_urls.split(",") if one.strip()]
    return any(plain == one or plain.startswith(one.rstrip("/") + "/") for one in listed)

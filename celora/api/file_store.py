"""Uploaded files: kept, found, deleted, and named as the data set of a job.

A file lies in the artifact store under its tenant's and its own id; what its owner calls it is a
column and never a path.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from sqlalchemy.orm import Session

from celora.api.caller import Caller, no_such
from celora.api.errors import ApiError
from celora.api.upload_check import require_rows
from models import store
from models.errors import StateError
from models.queries import files
from models.queries.files import NewFile
from models.session import transaction
from models.tables import StoredFile

Purpose = Literal["fine-tune", "fine-tune-results"]
_NAME = "data.jsonl"
_CHUNK_BYTES = 1 << 20


def keep_file(
    tenant_id: int,
    user: str,
    content: IO[bytes],
    *,
    filename: str,
    purpose: Purpose,
    lives_seconds: int | None = None,
    columns: dict[str, str] | None = None,
) -> StoredFile:
    """Write a file to the store and put it on record; training data is looked at first.

    Takes as long as the file is long: nothing for an event loop, and not inside a transaction.
    Raises DataError, ApiError for a quota that is reached, UnavailableError, SetupError.
    """
    file_id = f"file-{secrets.token_urlsafe(18).replace('-', 'A').replace('_', 'B')}"
    url = store.file_url(tenant_id, file_id)
    folder = store.incoming_folder(url)
    try:
        folder.mkdir(parents=True)
        size_bytes, line_count, digest = _write(content, folder / _NAME)
        if purpose == "fine-tune":
            _require_room(tenant_id, user, size_bytes)
            require_rows(folder / _NAME, columns or {})
        store.place(folder, url)
    except OSError as error:
        raise store.refused("write", error, url) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with transaction() as session:
        return files.insert_file(
            session,
            NewFile(
                id=file_id,
                tenant_id=tenant_id,
                user=user,
                purpose=purpose,
                filename=filename,
                size_bytes=size_bytes,
                line_count=line_count,
                digest=digest,
                url=url,
                lives_seconds=lives_seconds,
            ),
        )


def own_file(session: Session, caller: Caller, file_id: str) -> StoredFile:
    """Raises NotFoundError: there is none, or it belongs to another tenant."""
    found = files.find_file(session, caller.tenant_id, file_id)
    if found is None:
        raise no_such("file", file_id)
    return found


def content_of(file: StoredFile) -> Iterator[bytes]:
    """Raises UnavailableError."""
    return store.chunks(file.url, _NAME)


def delete_file(caller: Caller, file_id: str) -> None:
    """Raises NotFoundError; StateError while a job that is not prepared yet has to read it.

    A job that is prepared has its own tokens and needs the file no more.
    """
    with transaction() as session:
        file = own_file(session, caller, file_id)
        job_id = files.needed_by(session, caller.tenant_id, _dataset(file))
        if job_id is not None:
            raise StateError(
                f"job {job_id} has not read the file yet",
                where="file_id",
                remedy="wait until it is queued, or cancel it",
            )
        files.mark_file_deleted(session, file)
    store.remove(file.url)  # what is left when this fails, the sweep finds


def resolve_training_file(
    session: Session, caller: Caller, file_id: str, *, param: str = "training_file"
) -> str:
    """The `dataset` of a JobSpec that reads the file. Raises ApiError for one that cannot be used.

    A data set below the store is opened for jobs of its own tenant only (training_data.locations).
    """
    file = files.find_file(session, caller.tenant_id, file_id)
    if file is None:
        raise ApiError(400, f"there is no file {file_id!r}", code="file_not_found", param=param)
    if file.purpose != "fine-tune":
        raise ApiError(
            400,
            f"file {file_id!r} has the purpose {file.purpose!r}, not 'fine-tune'",
            code="wrong_purpose",
            param=param,
        )
    return _dataset(file)


def _dataset(file: StoredFile) -> str:
    return store.join(file.url, _NAME)


def _write(content: IO[bytes], path: Path) -> tuple[int, int, str]:
    """Size, lines and SHA-256 of what was written, for good."""
    digest, size_bytes, line_count, last = hashlib.sha256(), 0, 0, b"\n"
    with path.open("xb") as file:
        while block := content.read(_CHUNK_BYTES):
            digest.update(block)
            size_bytes += file.write(block)
            line_count, last = line_count + block.count(b"\n"), block[-1:]
        file.flush()
        os.fsync(file.fileno())
    return size_bytes, line_count + (last != b"\n"), digest.hexdigest()


def _require_room(tenant_id: int, user: str, size_bytes: int) -> None:
    with transaction() as session:
        left = files.room_left(session, tenant_id, user)
    if left is not None and size_bytes > left:
        raise ApiError(
            413,
            f"the file has {size_bytes:,} bytes, and the disk quota leaves {max(0, left):,}",
            code="disk_quota_exceeded",
            param="file",
        )

"""Where files live: the artifact store's layout, on a local folder or any fsspec URL.

Files of an attempt live under a path that holds job and fence, so that a stale worker can only
ever touch its own; prepared data is shared by digest and appears by one rename.

    jobs/<job>/<fence>/checkpoints/step-<n>/   registered in `checkpoints`
    jobs/<job>/<fence>/adapter/                registered in `artifacts` (model/ for method full)
    prepared/<digest>/                         train.arrow, eval.arrow, verdict.json
    prepared/<digest>-<random>/                anew after a sweep; in a remote store always
    files/<tenant>/<file>/data.jsonl           uploaded; registered in `files`
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from models import disk
from models.errors import CeloraError, InputError, SetupError, UnavailableError
from models.settings import settings

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Written last to a remote folder, which has no rename that would make it appear at once, and
# deleted first: a folder that lists it is complete.
_WHOLE = "_whole"
# Where a file's name is all that there is; elsewhere its folder has to be made.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "r2"})
# By name: each kind of store has exceptions of its own library, which may not be installed.
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    return Path(url.removeprefix("file://")).expanduser().absolute()


def join(url: str, *parts: str) -> str:
    """`url` with path parts below it. Raises InputError for a part that could leave the folder."""
    for part in parts:
        if not _PART.fullmatch(part):
            raise InputError(
                f"{part!r} is not a plain file name", remedy="use letters, digits, . _ -"
            )
    return "/".join((url.rstrip("/"), *parts))


def attempt_url(job_id: str, fence: int) -> str:
    return join(settings().artifacts_url, "jobs", job_id, str(fence))


def checkpoint_url(job_id: str, fence: int, step: int) -> str:
    return join(attempt_url(job_id, fence), "checkpoints", f"step-{step}")


def prepared_url(digest: str, *, again: bool = False) -> str:
    """`again`: a place that was never used. A sweep may still be deleting in the first one, and on
    a remote store two that prepare the same at once would mix their files there."""
    name = f"{digest}-{secrets.token_hex(4)}" if again else digest
    return join(settings().artifacts_url, "prepared", name)


def file_url(tenant_id: int, file_id: str) -> str:
    """The folder of one uploaded file."""
    return join(files_url(tenant_id), file_id)


def files_url(tenant_id: int | None = None) -> str:
    """Where the uploaded files of a tenant lie, or those of all tenants."""
    parts = () if tenant_id is None else (str(tenant_id),)
    return join(settings().artifacts_url, "files", *parts)


def incoming_folder(url: str) -> Path:
    """A local folder to write what will be `place`d at `url`: beside it where that is local."""
    if is_local(url):
        return local_path(f"{url}.incoming")
    return settings().at_home("work", "incoming", url.rpartition("/")[2])


def work_folder(job_id: str, fence: int) -> Path:
    """The local folder the trainer writes to: the store's own where that is local."""
    if is_local(settings().artifacts_url):
        return local_path(attempt_url(job_id, fence))
    return settings().at_home("work", PurePosixPath(join("jobs", job_id, str(fence))).as_posix())


def remote(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; it remembers no listings.

    By default fsspec answers from the listings it has seen, for as long as a worker lives: what
    another host wrote or deleted since would not be noticed. Raises what fsspec raises.
    """
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    filesystem.invalidate_cache()  # some kinds of store keep one all the same
    return filesystem, path


def upload(folder: Path, url: str) -> None:
    """Copy a whole local folder to `url`; nothing to do where the folder already is the place.

    Raises UnavailableError; SetupError where the disk is full.
    """
    with reaching("write", url):
        if is_local(url):
            _copy(folder.absolute(), local_path(url))
            return
        filesystem, path = remote(url)
        # File by file: given a folder, s3fs would make a bucket that is not there.
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        targets = [f"{path}/{file.relative_to(folder).as_posix()}" for file in files]
        if url.partition("://")[0] not in _WITHOUT_FOLDERS:
            for parent in {path, *(target.rpartition("/")[0] for target in targets)}:
                filesystem.makedirs(parent, exist_ok=True)
        filesystem.put([str(file) for file in files], targets)
        filesystem.pipe_file(f"{path}/{_WHOLE}", b"")


def _copy(folder: Path, target: Path) -> None:
    if target == folder:
        return
    staging = target.with_name(target.name + ".incoming")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(folder, staging)
        _appear(staging, target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)  # half a copy only takes room
        raise


def place(folder: Path, url: str) -> None:
    """`upload`, by a rename where that is possible. Raises UnavailableError, SetupError."""
    if is_local(url):
        target = local_path(url)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _appear(folder, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise refused("write", error, url) from error
        else:
            return
    upload(folder, url)  # to another file system: a copy, and then the rename


def read(url: str, name: str) -> bytes:
    """One small file of a folder in the store. Raises UnavailableError."""
    return b"".join(chunks(url, name))


def chunks(url: str, name: str, size: int = 1 << 18) -> Iterator[bytes]:
    """A file of a folder in the store, however long. Raises UnavailableError."""
    with reaching("read", url), _opened(join(url, name)) as file:
        yield from iter(lambda: bytes(file.read(size)), b"")


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    if is_local(url):
        with local_path(url).open("rb") as file:
            yield file
        return
    filesystem, path = remote(url)
    with filesystem.open(path, "rb") as file:
        yield file


def read_text(url: str) -> str | None:
    """A small file of the store's own; none where there is none. Raises UnavailableError."""
    with reaching("read", url):
        try:
            with _opened(url) as file:
                return bytes(file.read()).decode()
        except FileNotFoundError:
            return None


def write_text(url: str, content: str) -> None:
    """Raises UnavailableError; SetupError where the disk is full."""
    with reaching("write", url):
        if is_local(url):
            local_path(url).parent.mkdir(parents=True, exist_ok=True)
            local_path(url).write_text(content)
            return
        filesystem, path = remote(url)
        filesystem.pipe_file(path, content.encode())


def download(url: str, folder: Path) -> Path:
    """A local folder with the content of `url`: the place itself where it is local.

    A remote folder is copied once, whoever asks, and appears at `folder` by rename. Raises
    UnavailableError; SetupError where the disk is full.
    """
    if is_local(url):
        return local_path(url)
    staging = folder.with_name(folder.name + ".incoming")
    with reaching("read", url, disk_at=staging), _alone(folder):
        if folder.is_dir():
            return folder
        shutil.rmtree(staging, ignore_errors=True)
        try:
            _copy_here(url, staging)
            _appear(staging, folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return folder


def _copy_here(url: str, staging: Path) -> None:
    filesystem, path = remote(url)
    filesystem.get(f"{path}/", f"{staging}/", recursive=True)
    if not (staging / _WHOLE).is_file():
        raise FileNotFoundError(errno.ENOENT, "it is not there, or not whole", url)
    (staging / _WHOLE).unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time: workers of several devices want the same data."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(folder.name + ".lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # falls with the process, however that ends
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)  # its holder has taken the file away: there may be a new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def reaching(what: str, url: str, *, disk_at: Path | None = None) -> Iterator[None]:
    """What a store raises, as our errors. botocore's are no OSErrors: nothing narrower will do."""
    try:
        yield
    except CeloraError:
        raise
    except Exception as error:
        if is_local(url) and not isinstance(error, OSError):
            raise
        raise refused(what, error, url, where=disk_at) from error


def refused(what: str, error: Exception, url: str, *, where: Path | None = None) -> CeloraError:
    """What a failed read or write of the store is to a caller."""
    if disk.is_full(error):
        return disk.full(error, where or url)
    if isinstance(error, (ImportError, ValueError)):
        return SetupError(
            f"this kind of store cannot be used: {error}",
            where=url,
            remedy="correct CELORA_ARTIFACTS; other stores than s3:// need a package of their own",
        )
    said = str(error) or type(error).__name__
    return UnavailableError(
        f"the artifact store refused a {what}: {said}", where=url, remedy=_remedy(what, error, url)
    )


def _remedy(what: str, error: Exception, url: str) -> str:
    if is_local(url):
        return "check the folder that CELORA_ARTIFACTS names, and the rights on it"
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        return (
            "check this machine's credentials for the store (s3://: AWS_ACCESS_KEY_ID,"
            " AWS_SECRET_ACCESS_KEY), and what they may do there"
        )
    if isinstance(error, FileNotFoundError) and what == "write":
        return "make the bucket, or correct CELORA_ARTIFACTS"
    if isinstance(error, FileNotFoundError):
        return "it may have been deleted: `celora storage` tells what is kept, and how long"
    return "check CELORA_ARTIFACTS, the network and, for s3://, AWS_ENDPOINT_URL"


def _appear(staging: Path, target: Path) -> None:
    """Rename into place. Whoever was quicker put the same content there: theirs stays."""
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(staging)


def exists(url: str) -> bool:
    """True when a whole folder stands at `url`; one that is still being written does not count.

    Raises UnavailableError.
    """
    if is_local(url):
        return local_path(url).exists()
    with reaching("look", url):
        filesystem, path = remote(url)
        return bool(filesystem.exists(f"{path}/{_WHOLE}"))


def size_bytes(url: str) -> int:
    """Of all files in a folder. Raises UnavailableError."""
    with reaching("look", url):
        if is_local(url):
            return sum(one.stat().st_size for one in local_path(url).rglob("*") if one.is_file())
        filesystem, path = remote(url)
        return int(filesystem.du(path))


def remove(url: str) -> None:
    """Delete a folder and all below it; a folder that is not there is fine.

    Raises UnavailableError when something is left.
    """
    with reaching("deletion", url):
        if is_local(url):
            _remove_local(local_path(url))
            return
        filesystem, path = remote(url)
        with suppress(FileNotFoundError):
            filesystem.rm_file(f"{path}/{_WHOLE}")
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def _remove_local(path: Path) -> None:
    # Twice: somebody else may delete there as well, and a file that is gone ends the first pass.
    shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

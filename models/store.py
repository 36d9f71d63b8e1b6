"""Where files live: the artifact store's layout, on a local folder or any fsspec URL.

Files of an attempt live under a path that holds job and fence, so that a stale worker can only
ever touch its own; prepared data is shared by digest and appears by one rename.

    jobs/<job>/<fence>/checkpoints/step-<n>/   registered in `checkpoints`
    jobs/<job>/<fence>/adapter/                registered in `artifacts` (model/ for method full)
    prepared/<digest>/                         train.arrow, eval.arrow, verdict.json
    prepared/<digest>-<random>/                prepared anew after a sweep
    files/<tenant>/<file>/data.jsonl           uploaded; registered in `files`
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from models import disk
from models.errors import CeloraError, InputError, UnavailableError
from models.settings import settings

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Written last to a remote folder, which has no rename that would make it appear at once.
_WHOLE = "_whole"


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
    """`again`: a place that was never used, as a sweep may still be deleting in the first one."""
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


def upload(folder: Path, url: str) -> None:
    """Copy a whole local folder to `url`; nothing to do where the folder already is the place.

    Raises UnavailableError; SetupError where the disk is full.
    """
    try:
        if is_local(url):
            _copy(folder.absolute(), local_path(url))
            return
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.put(f"{folder}/", f"{path}/", recursive=True)
        filesystem.touch(f"{path}/{_WHOLE}")
    except OSError as error:
        raise refused("write", error, url) from error


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
    try:
        if is_local(url):
            return local_path(join(url, name)).read_bytes()
        import fsspec

        with fsspec.open(join(url, name), "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise refused("read", error, url) from error


def chunks(url: str, name: str, size: int = 1 << 18) -> Iterator[bytes]:
    """A file of a folder in the store, however long. Raises UnavailableError."""
    try:
        if is_local(url):
            with local_path(join(url, name)).open("rb") as file:
                yield from iter(lambda: file.read(size), b"")
            return
        import fsspec

        with fsspec.open(join(url, name), "rb") as file:
            yield from iter(lambda: bytes(file.read(size)), b"")
    except OSError as error:
        raise refused("read", error, url) from error


def read_text(url: str) -> str | None:
    """A small file of the store's own; none where there is none. Raises UnavailableError."""
    try:
        if is_local(url):
            return local_path(url).read_text()
        import fsspec

        with fsspec.open(url, "rt") as file:
            return str(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused("read", error, url) from error


def write_text(url: str, content: str) -> None:
    """Raises UnavailableError; SetupError where the disk is full."""
    try:
        if is_local(url):
            local_path(url).parent.mkdir(parents=True, exist_ok=True)
            local_path(url).write_text(content)
            return
        import fsspec

        with fsspec.open(url, "wt") as file:
            file.write(content)
    except OSError as error:
        raise refused("write", error, url) from error


def download(url: str, folder: Path) -> Path:
    """A local folder with the content of `url`: the place itself where it is local.

    A remote folder is copied once and appears at `folder` by rename. Raises UnavailableError;
    SetupError where the disk is full.
    """
    if is_local(url):
        return local_path(url)
    if folder.is_dir():
        return folder
    staging = folder.with_name(folder.name + ".incoming")
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get(f"{path}/", f"{staging}/", recursive=True)
        (staging / _WHOLE).unlink()
        _appear(staging, folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise refused("read", error, url, where=staging) from error
    return folder


def refused(what: str, error: OSError, url: str, *, where: Path | None = None) -> CeloraError:
    """What a failed read or write of the store is to a caller."""
    if disk.is_full(error):
        return disk.full(error, where or url)
    return UnavailableError(f"the artifact store refused a {what}: {error}", where=url)


def _appear(staging: Path, target: Path) -> None:
    """Rename into place. Whoever was quicker put the same content there: theirs stays."""
    try:
        staging.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(staging)


def exists(url: str) -> bool:
    """True when a whole folder stands at `url`; one that is still being written does not count."""
    if is_local(url):
        return local_path(url).exists()
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    return bool(filesystem.exists(f"{path}/{_WHOLE}"))


def size_bytes(url: str) -> int:
    """Of all files in a folder. Raises UnavailableError."""
    try:
        if is_local(url):
            return sum(one.stat().st_size for one in local_path(url).rglob("*") if one.is_file())
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        return int(filesystem.du(path))
    except OSError as error:
        raise refused("read", error, url) from error


def remove(url: str) -> None:
    """Delete a folder and all below it; a folder that is not there is fine.

    Raises UnavailableError when something is left.
    """
    try:
        if is_local(url):
            _remove_local(local_path(url))
            return
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
    except OSError as error:
        raise UnavailableError(f"the store did not delete it: {error}", where=url) from error


def _remove_local(path: Path) -> None:
    # Twice: somebody else may delete there as well, and a file that is gone ends the first pass.
    shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Where files live: the artifact store's layout, on a local folder or any fsspec URL.

Files of an attempt live under a path that holds job and fence, so that a stale worker can only
ever touch its own; prepared data is shared by digest and appears by one rename.

    jobs/<job>/<fence>/checkpoints/step-<n>/   registered in `checkpoints`
    jobs/<job>/<fence>/adapter/                registered in `artifacts` (model/ for method full)
    prepared/<digest>/                         train.arrow, eval.arrow, verdict.json
"""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path, PurePosixPath

from models.errors import InputError, UnavailableError
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


def prepared_url(digest: str) -> str:
    return join(settings().artifacts_url, "prepared", digest)


def work_folder(job_id: str, fence: int) -> Path:
    """The local folder the trainer writes to: the store's own where that is local."""
    if is_local(settings().artifacts_url):
        return local_path(attempt_url(job_id, fence))
    return settings().at_home("work", PurePosixPath(join("jobs", job_id, str(fence))).as_posix())


def upload(folder: Path, url: str) -> None:
    """Copy a whole local folder to `url`; nothing to do where the folder already is the place.

    Raises UnavailableError.
    """
    if is_local(url):
        target = local_path(url)
        if target != folder.absolute():
            staging = target.with_name(target.name + ".incoming")
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(folder, staging)
            _appear(staging, target)
        return
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.put(f"{folder}/", f"{path}/", recursive=True)
        filesystem.touch(f"{path}/{_WHOLE}")
    except OSError as error:
        raise UnavailableError(f"the artifact store refused a write: {error}", where=url) from error


def place(folder: Path, url: str) -> None:
    """`upload`, by a rename where that is possible. Raises UnavailableError."""
    if not is_local(url):
        upload(folder, url)
        return
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _appear(folder, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        upload(folder, url)  # another file system: a copy, and then the rename


def read(url: str, name: str) -> bytes:
    """One small file of a folder in the store. Raises UnavailableError."""
    try:
        if is_local(url):
            return local_path(join(url, name)).read_bytes()
        import fsspec

        with fsspec.open(join(url, name), "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise UnavailableError(f"the artifact store refused a read: {error}", where=url) from error


def download(url: str, folder: Path) -> Path:
    """A local folder with the content of `url`: the place itself where it is local.

    A remote folder is copied once and appears at `folder` by rename. Raises UnavailableError.
    """
    if is_local(url):
        return local_path(url)
    if folder.is_dir():
        return folder
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        staging = folder.with_name(folder.name + ".incoming")
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get(f"{path}/", f"{staging}/", recursive=True)
        (staging / _WHOLE).unlink()
        _appear(staging, folder)
    except OSError as error:
        raise UnavailableError(f"the artifact store refused a read: {error}", where=url) from error
    return folder


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


def remove(url: str) -> None:
    """Delete a folder and all below it; a folder that is not there is fine."""
    if is_local(url):
        shutil.rmtree(local_path(url), ignore_errors=True)
        return
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)

"""Where a data set lies: turns what the user wrote into files, or into a hub data set's name.

A path must lie below one of CELORA_DATASET_ROOTS where those are set, with every link resolved;
a path outside is refused without saying whether it exists.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from models.errors import InputError
from models.settings import settings
from models.store import files_url, is_local, local_path, remote
from training_data.access import access
from training_data.files import DataFile, explained
from training_data.public_http import PREFIX, filesystem_for

SourceCheck = Callable[[str], None]

# Only these: others (`dir`, `generic`, `zip`, …) can reach the local disk around the check.
_REMOTE_PROTOCOLS = frozenset(
    {"abfs", "abfss", "adl", "az", "dbfs", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https"}
    | {"lakefs", "memory", "oci", "oss", "r2", "s3", "s3a", "sftp", "smb", "webdav", "webhdfs"}
)
_PUBLIC = frozenset({f"{PREFIX}http", f"{PREFIX}https"})
# A name on the hub and never a path here, whatever lies in the worker's folder.
HUB_PREFIX = "hub://"
# What a folder's data files are called; the first kind that is there is read, the rest is not.
FOLDER_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# A folder given by mistake (a home, the root) is refused instead of walked for minutes.
_DEEPEST, _MOST_FILES = 3, 10_000
_LOCAL_SCHEME = re.compile("(file|local)://", re.IGNORECASE)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set on the hub: `owner/name`, or `owner/name:config` where it has configurations."""

    name: str
    config: str | None
    revision: str | None
    splits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileSet:
    files: tuple[DataFile, ...]


def locate(
    dataset: str,
    *,
    splits: tuple[str, ...],
    revision: str | None,
    source_check: SourceCheck | None = None,
) -> FileSet | HubName:
    """Find a data set; of one that has splits the first of `splits` that it has.

    `source_check` is told each resolved place and may raise to forbid it.
    Raises InputError for a path that is missing, forbidden or without data, and
    UnavailableError for a remote store that does not answer.
    """
    if local := _LOCAL_SCHEME.match(dataset):
        dataset = dataset[local.end() :]
    if dataset.startswith(HUB_PREFIX):
        name, _, config = dataset.removeprefix(HUB_PREFIX).partition(":")
        return HubName(name, config or None, revision, splits)
    if "://" in dataset:
        return _locate_url(dataset, splits, source_check)
    with explained(dataset, remote=False):
        path = Path(os.path.realpath(Path(dataset).expanduser()))
        is_there, is_folder = path.exists(), path.is_dir()
    suffixes = (*FOLDER_SUFFIXES, *COMPRESSIONS)
    if HUB_NAME.fullmatch(dataset) and not dataset.endswith(suffixes) and not is_there:
        name, _, config = dataset.partition(":")
        return HubName(name, config or None, revision, splits)
    _require_allowed(path, dataset)
    if source_check is not None:
        source_check(str(path))
    if is_folder:
        return _folder(_LocalTree(path, source_check), dataset, splits)
    if is_there:
        return FileSet((DataFile(path.name, str(path)),))
    raise InputError(
        "there is no such file or folder",
        where=dataset,
        remedy="give a path as the cpu worker sees it, a URL such as s3://…, or a hub name",
    )


def _require_allowed(path: Path, shown: str) -> None:
    own = access().files_url
    if own is not None and is_local(own) and path.is_relative_to(os.path.realpath(local_path(own))):
        return
    uploads = files_url()
    if is_local(uploads) and path.is_relative_to(os.path.realpath(local_path(uploads))):
        raise _of_others(shown)
    roots = [root for root in settings().dataset_roots.split(os.pathsep) if root]
    if roots and not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise InputError(
            "data may not be read from there",
            where=shown,
            remedy=f"put the data below {' or '.join(roots)} (CELORA_DATASET_ROOTS)",
        )


def _of_others(shown: str) -> InputError:
    return InputError(
        "uploaded files are read by jobs of their own tenant alone",
        where=shown,
        remedy="upload the file with a key of the job's tenant",
    )


def _require_own_uploads(url: str) -> None:
    own, places = access().files_url, _places(url)
    if any(_is_below(place, files_url()) for place in places) and not (
        own is not None and all(_is_below(place, own) for place in places)
    ):
        raise _of_others(url)


def _is_below(place: str, folder: str) -> bool:
    return place.startswith(f"{_places(folder)[0]}/")


def _places(url: str) -> tuple[str, ...]:
    """The paths in its store that a remote URL can mean, however it is spelled.

    Of which store is left out: s3 and s3a are one, hdfs and webhdfs as well. A path of another
    store that looks like that of the uploads is taken for one of them.
    """
    import fsspec

    protocol, path = _protocol(url), url
    with suppress(ImportError, ValueError):  # then it is not opened either
        kind = fsspec.get_filesystem_class(protocol)
        path = str(kind._strip_protocol(url))  # noqa: SLF001 (fsspec has no public name for it)
    path = path.removeprefix(f"{protocol}://")
    return tuple(posixpath.normpath("/" + one.lstrip("/")) for one in (path, unquote(path)))


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else "file"


def _locate_url(url: str, splits: tuple[str, ...], source_check: SourceCheck | None) -> FileSet:
    protocol = _protocol(url)
    public = protocol in _PUBLIC
    import fsspec

    if not public and "::" not in url and protocol not in fsspec.available_protocols():
        raise InputError(
            f"there is no store of the kind {protocol!r}",
            where=url,
            remedy="use s3://, gs://, abfs://, https:// or another that fsspec knows",
        )
    of_the_store = not is_local(files_url()) and protocol == _protocol(files_url())
    if "::" in url or not (public or of_the_store or protocol in _REMOTE_PROTOCOLS):
        raise InputError(
            "this kind of URL is not allowed",
            where=url,
            remedy="give a plain path, or a URL of one store such as s3://bucket/file.jsonl",
        )
    if not public:
        url = f"{protocol}{url[len(protocol) :]}"  # fsspec knows no upper case
        _require_own_uploads(url)
    if source_check is not None:
        source_check(url)
    with explained(url, remote=True):
        filesystem, path = filesystem_for(url) if public else remote(url)
        is_folder = not filesystem.isfile(path) and filesystem.isdir(path)
    if is_folder:
        return _folder(_RemoteTree(filesystem, path, url), url, splits)
    return FileSet((DataFile(path.rstrip("/").rpartition("/")[2], path, filesystem),))


class _LocalTree:
    """A folder here. Each file's links are resolved and checked: a link may lead out of it."""

    def __init__(self, root: Path, source_check: SourceCheck | None) -> None:
        self.root = root
        self.source_check = source_check

    def names(self) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self.root):
            below = Path(folder).relative_to(self.root)
            if len(below.parts) == _DEEPEST:
                folders.clear()
            found += [(below / file).as_posix() for file in files]
            if len(found) > _MOST_FILES:
                raise InputError(
                    f"the folder holds more than {_MOST_FILES} files",
                    where=str(self.root),
                    remedy="give a folder that holds the data alone",
                )
        return sorted(found)

    def file(self, name: str) -> DataFile:
        path = Path(os.path.realpath(self.root / name))
        _require_allowed(path, str(self.root / name))
        if self.source_check is not None:
            self.source_check(str(path))
        return DataFile(name, str(path))


class _RemoteTree:
    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.url = url

    def names(self) -> list[str]:
        with explained(self.url, remote=True):
            found = self.filesystem.find(self.root)
        return sorted(path.removeprefix(self.root).lstrip("/") for path in found)

    def file(self, name: str) -> DataFile:
        _require_own_uploads(f"{self.url}/{name}")
        return DataFile(name, f"{self.root}/{name}", self.filesystem)


def _folder(tree: _LocalTree | _RemoteTree, shown: str, splits: tuple[str, ...]) -> FileSet:
    """A folder that `datasets` saved, or one of plain data files."""
    names = [name for name in tree.names() if not any(p.startswith(".") for p in name.split("/"))]
    if "dataset_dict.json" in names:
        there = _saved_json(tree, "dataset_dict.json", shown).get("splits", [])
        return _saved(tree, names, f"{first_split(splits, there, shown)}/", shown)
    if "state.json" in names and "dataset_info.json" in names:
        return _saved(tree, names, "", shown)
    chosen = _plain_files(names, splits)
    if not chosen:
        raise InputError(
            "the folder holds no data",
            where=shown,
            remedy=f"put files ending in {', '.join(FOLDER_SUFFIXES)} there, or name a file",
        )
    return FileSet(tuple(tree.file(name) for name in chosen))


def first_split(wanted: tuple[str, ...], there: Sequence[str], shown: str) -> str:
    """The first wanted split that a data set has. Raises InputError."""
    for split in wanted:
        if split in there:
            return split
    raise InputError(
        f"the data set has no split {wanted[-1]!r}",
        where=shown,
        remedy=f"set dataset_split to one of: {', '.join(there)}",
    )


def _plain_files(names: list[str], splits: tuple[str, ...]) -> list[str]:
    """Files of one kind, in order of name; those named after a split where there are any.

    Reading `test.jsonl` beside `train.jsonl` would train on what is kept for the test.
    """
    for suffix in FOLDER_SUFFIXES:
        endings = (suffix, *(suffix + compression for compression in COMPRESSIONS))
        found = [name for name in names if name.lower().endswith(endings)]
        for split in splits:
            named = re.compile(rf"{re.escape(split)}(?![a-z])")
            if ours := [name for name in found if named.match(_stem(name))]:
                return ours
        if found:
            return found
    return []


def _stem(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _saved(tree: _LocalTree | _RemoteTree, names: list[str], below: str, shown: str) -> FileSet:
    """The Arrow files of one saved split, as its `state.json` lists them."""
    entries = _saved_json(tree, f"{below}state.json", shown).get("_data_files", [])
    listed = [f"{below}{entry['filename']}" for entry in entries]
    missing = sorted(set(listed) - set(names))
    if missing or not listed:
        raise InputError(
            f"the saved data set lacks {missing[0]}" if missing else "the saved data set is empty",
            where=shown,
            remedy="save it again with Dataset.save_to_disk",
        )
    return FileSet(tuple(tree.file(name) for name in listed))


def _saved_json(tree: _LocalTree | _RemoteTree, name: str, shown: str) -> dict[str, Any]:
    try:
        content = json.loads(tree.file(name).head(1 << 20))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{name} is broken", where=shown, remedy="save it again with Dataset.save_to_disk"
        )
    return content

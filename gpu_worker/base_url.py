"""A base model from an fsspec URL (s3://, gs://, …), copied once to CELORA_HOME/bases.

bases/<digest>/           the whole model
bases/<digest>.config/    configuration and tokenizer alone
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gpu_worker.base_files import (
    NEVER,
    WEIGHT_FILES,
    Files,
    ModelFile,
    check,
    content_digest,
    local_files,
    matches,
    patterns,
)
from models import disk, store
from models.errors import BaseModelError, CeloraError, UnavailableError
from models.settings import settings
from training_data.hub_reach import is_away


def fetch(url: str, *, weights: bool, code: bool) -> tuple[Path, str]:
    """The local copy's folder and the content digest. Raises BaseModelError.

    One process copies, others wait for it; a copy appears by one rename, so a killed one leaves
    nothing that could be taken for a model.
    """
    with _explained(url):
        files = _remote_files(url, code=code)
        check(files, where=url)
        digest = content_digest(files)
        name = digest.removeprefix("sha256:")
        whole, small = (settings().at_home("bases", n) for n in (name, f"{name}.config"))
        target = whole if weights or whole.is_dir() else small
        if not target.is_dir():
            wanted = [f for f in files.values() if weights or not matches(f.name, WEIGHT_FILES)]
            _copy(wanted, target)
            if weights and content_digest(local_files(target, code=code)) != digest:
                shutil.rmtree(target)
                raise BaseModelError(
                    "the model changed while it was copied",
                    where=url,
                    remedy="retry once nobody writes to it",
                )
    return target, digest


def _remote_files(url: str, *, code: bool) -> Files:
    filesystem, root = store.remote(url)
    known = [*patterns(weights=True, code=code), "*.bin", "*.pt", "*.pth"]
    files = {}
    for info in filesystem.ls(root, detail=True):
        name = PurePosixPath(info["name"]).name
        if info["type"] == "file" and matches(name, known) and not matches(name, NEVER):
            # Small blocks: the checks read headers and samples, not files.
            opening: Any = partial(filesystem.open, info["name"], "rb", block_size=1 << 20)
            files[name] = ModelFile(name, int(info["size"]), opening)
    return files


def _copy(files: list[ModelFile], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # falls with the process, however that ends
        if target.is_dir():
            return
        incoming = target.with_name(f"{target.name}.incoming")
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        for file in files:
            with file.open() as source, (incoming / file.name).open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        incoming.rename(target)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except CeloraError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise BaseModelError(
            "there is nothing at this address",
            where=url,
            remedy="name the folder that holds config.json",
        ) from None
    except (ImportError, ValueError) as error:
        raise BaseModelError(
            f"this kind of address cannot be read: {error}",
            where=url,
            remedy="use a protocol that fsspec knows and whose package is installed, or a folder",
        ) from error
    except Exception as error:
        if disk.is_full(error):
            raise disk.full(error, settings().at_home("bases")) from error
        # Every protocol raises its own library's exceptions.
        if is_away(error):
            raise UnavailableError(
                f"the store did not answer: {type(error).__name__}: {error}",
                where=url,
                remedy="check the address and the network, then `celora retry`",
            ) from error
        raise BaseModelError(
            f"the store did not give the model: {type(error).__name__}: {error}",
            where=url,
            remedy="check the address, the network and the workers' credentials",
        ) from error

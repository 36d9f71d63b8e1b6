"""A base model from the hub, through its own client and cache (HF_HOME, HF_ENDPOINT, HF_TOKEN)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpu_worker.base_files import NEVER, check_config, check_names, patterns
from models.errors import BaseModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS = 30.0


def fetch(name: str, revision: str | None, *, weights: bool, code: bool) -> tuple[Path, str]:
    """The snapshot's folder and its commit. Asks the hub nothing where the commit is cached.

    Safe beside others that fetch the same, and after a kill: the client locks, and renames whole
    files into place. Raises BaseModelError.
    """
    import huggingface_hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    wanted: dict[str, Any] = {
        "allow_patterns": patterns(weights=weights, code=code),
        "ignore_patterns": list(NEVER),
    }
    try:
        commit = _commit(name, revision)
        folder = Path(huggingface_hub.snapshot_download(name, revision=commit, **wanted))
    except Exception as error:
        # The client lets its HTTP library's exceptions through beside its own and OSError.
        raise _explained(name, revision, error) from error
    try:
        tree = huggingface_hub.get_cached_repo_tree(name, revision=commit)
        names = [file.path for file in tree]
    except CachedRepoTreeNotFoundError:
        names = [path.name for path in folder.iterdir()]  # a cache that an older client filled
    check_names(names, where=name)
    check_config((folder / "config.json").read_bytes(), where=name)
    return folder, commit


def _commit(name: str, revision: str | None) -> str:
    """What the revision means now; with the hub away, what it meant when it was cached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001  whatever kept the hub away is raised below
        try:
            cached = snapshot_download(
                name, revision=revision, allow_patterns="config.json", local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise error from None
        return Path(cached).name


def _explained(name: str, revision: str | None, error: Exception) -> BaseModelError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return BaseModelError(
            "the model is gated, and this machine's account has no access",
            where=name,
            remedy="accept its terms on the hub, then set HF_TOKEN on the workers",
        )
    if isinstance(error, RepositoryNotFoundError):
        return BaseModelError(
            "it is neither a folder here nor a model on the hub",
            where=name,
            remedy="check the name; a private model needs HF_TOKEN on the workers",
        )
    if isinstance(error, RevisionNotFoundError):
        return BaseModelError(
            f"the model has no revision {revision!r}",
            where=name,
            remedy="name a branch, tag or commit that exists, or leave base_revision out",
        )
    first_line = str(error).strip().splitlines()[:1] or [""]
    return BaseModelError(
        f"the hub did not give the model: {type(error).__name__}: {first_line[0]}",
        where=name,
        remedy="check network, HF_ENDPOINT and disk space, or run `celora pull` where there is a "
        "network and share HF_HOME",
    )

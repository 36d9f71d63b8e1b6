"""A base model from the hub, through its own client and cache (HF_HOME, HF_ENDPOINT).

It is fetched with the token of the job's tenant (training_data.access), or else with HF_TOKEN.
"""

from __future__ import annotations

from pathlib import Path

from gpu_worker.base_files import NEVER, check_config, check_names, patterns
from gpu_worker.hub_access import require_access
from models import disk
from models.errors import BaseModelError, CeloraError, UnavailableError
from training_data.access import access
from training_data.hub_reach import is_away, limit_waits


def fetch(name: str, revision: str | None, *, weights: bool, code: bool) -> tuple[Path, str]:
    """The snapshot's folder and its commit. Asks the hub nothing where the commit of an open model
    is cached; whether a closed one may be used, each time.

    Safe beside others that fetch the same, and after a kill: the client locks, and renames whole
    files into place. Raises BaseModelError; UnavailableError where the hub does not answer.
    """
    from huggingface_hub import resolve_revision

    limit_waits()
    try:
        # With the hub away: what the name meant when it was last asked.
        token = access().hub_token
        commit = resolve_revision(name, revision=revision, token=token).resolved
        require_access(name)
        folder = _download(name, commit, weights=False, code=code)
        check_names(_listing(name, commit, folder), where=name)
        check_config((folder / "config.json").read_bytes(), where=name)
        if weights:
            _download(name, commit, weights=True, code=code)
    except CeloraError:
        raise
    except Exception as error:
        if disk.is_full(error):
            raise disk.full(error, "the hub's cache (HF_HOME)") from error
        # The client lets its HTTP library's exceptions through beside its own and OSError.
        raise _explained(name, revision, error) from error
    return folder, commit


def _download(name: str, commit: str, *, weights: bool, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = patterns(weights=weights, code=code)
    return Path(
        snapshot_download(
            name,
            revision=commit,
            allow_patterns=wanted,
            ignore_patterns=list(NEVER),
            token=access().hub_token,
        )
    )


def _listing(name: str, commit: str, folder: Path) -> list[str]:
    """All that the repository holds; the client keeps it beside the snapshot."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(name, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return [path.name for path in folder.iterdir()]  # a cache that an older client filled


def _explained(name: str, revision: str | None, error: Exception) -> CeloraError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return BaseModelError(
            "the model is gated, and the account that asked has no access",
            where=name,
            remedy="accept its terms on the hub, then give the tenant its token with "
            "`celora tenants token set`, or set HF_TOKEN on the workers",
        )
    if isinstance(error, RepositoryNotFoundError):
        return BaseModelError(
            "it is neither a folder here nor a model on the hub",
            where=name,
            remedy="check the name; a private model needs the tenant's token, or HF_TOKEN on the "
            "workers",
        )
    if isinstance(error, RevisionNotFoundError):
        return BaseModelError(
            f"the model has no revision {revision!r}",
            where=name,
            remedy="name a branch, tag or commit that exists, or leave base_revision out",
        )
    first_line = str(error).strip().splitlines()[:1] or [""]
    if is_away(error):
        return UnavailableError(
            f"the hub did not answer: {type(error).__name__}: {first_line[0]}",
            where=name,
            remedy="check the network and HF_ENDPOINT, then `celora retry`; or run `celora pull` "
            "where there is a network and share HF_HOME",
        )
    return BaseModelError(
        f"the hub did not give the model: {type(error).__name__}: {first_line[0]}",
        where=name,
        remedy="check HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE, or run `celora pull` where there "
        "is a network and share HF_HOME",
    )

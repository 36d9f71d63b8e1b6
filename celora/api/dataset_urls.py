"""Which data a caller of the HTTP API may name, and how the job then names it.

Somebody with a key is not somebody with an account on the workers: no path of theirs is opened, no
address inside the house, no store that only the workers' credentials open, unless an administrator
named it in CELORA_API_DATASET_ROOTS.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from celora.api.caller import Caller
from celora.api.errors import ApiError
from celora.api.file_store import resolve_training_file
from models.errors import InputError
from models.session import transaction
from models.settings import settings
from models.store import is_local
from training_data.locations import HUB_NAME, HUB_PREFIX
from training_data.public_http import PREFIX, require_public

_FILE_ID = re.compile(r"file-[A-Za-z0-9]+")
_LONGEST = 2_000


def admitted(caller: Caller, dataset: str, *, param: str = "dataset") -> str:
    """The `dataset` of a JobSpec for what a caller wrote: a file's id, a hub name, a URL, a path.

    Asks the database and the name server, so not inside a transaction. Raises ApiError.
    """
    if _FILE_ID.fullmatch(dataset):
        with transaction() as session:
            return resolve_training_file(session, caller, dataset, param=param)
    if len(dataset) > _LONGEST or not dataset.isprintable() or not dataset.strip():
        raise _refused(param, "this is no name of data")
    if _is_below_a_root(dataset):
        return dataset
    if "://" in dataset:
        return _public(dataset, param)
    if HUB_NAME.fullmatch(dataset):
        return HUB_PREFIX + dataset
    raise _refused(param, "files of the server are not read")


def _public(url: str, param: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused(param, "this is no URL") from None
    schemes = {one.strip() for one in settings().api_dataset_schemes.split(",")}
    if parts.scheme not in schemes & {"http", "https"} or "::" in url:
        raise _refused(param, "URLs of this kind are not read")
    if parts.username is not None or parts.password is not None:
        raise _refused(param, "user and password do not belong into a data set's URL")
    try:
        require_public(url)
    except InputError as error:
        raise _refused(param, error.what) from None
    return PREFIX + url


def _is_below_a_root(dataset: str) -> bool:
    scheme, path = _split(dataset)
    # A web server decodes what it is asked for; a proxy before it may have done so once already.
    parts = re.split(r"[/\\]", unquote(unquote(path)))
    if "::" in dataset or ".." in parts or not (scheme or path.startswith("/")):
        return False
    roots = [one.strip() for one in settings().api_dataset_roots.split(",")]
    for root_scheme, root in (_split(one) for one in roots if one):
        below = posixpath.normpath(path).startswith(posixpath.normpath(root).rstrip("/") + "/")
        if scheme == root_scheme and below:
            return True
    return False


def _split(text: str) -> tuple[str, str]:
    if is_local(text):
        return "", text.removeprefix("file://")
    scheme, _, path = text.partition("://")
    return scheme.lower(), path


def _refused(param: str, what: str) -> ApiError:
    kinds = ", ".join(f"{one.strip()}:// URLs" for one in settings().api_dataset_schemes.split(","))
    message = f"{what}; give a file's id, a data set on the hub, or one of: {kinds}"
    return ApiError(400, message, code="dataset_not_allowed", param=param)

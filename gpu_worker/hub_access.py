"""Whether an account may have a model that this machine's cache may hold already.

The cache is shared by all tenants, and the hub's client hands out what lies in it without asking.
So a closed model (gated or private) is asked for with the token of whoever wants it, each time; the
answers are noted beside the model, for when the hub is away. An open one is asked about once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from training_data.access import access
from training_data.hub_reach import is_away

_NOTE = "celora-access.json"
_MACHINE = "machine"  # HF_TOKEN, or nobody


@dataclass
class _Known:
    open: bool
    accounts: list[str]  # that may have it, as the hub answered last: digests of their tokens

    @classmethod
    def read(cls, path: Path) -> _Known | None:
        try:
            noted = json.loads(path.read_text())
            return cls(bool(noted["open"]), [str(one) for one in noted["accounts"]])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        new.write_text(json.dumps(asdict(self)))
        new.replace(path)


def require_access(name: str) -> None:
    """Raise what the hub's client raises for a model that the account may not have."""
    token = access().hub_token
    path = _place(name)
    known = _Known.read(path)
    if known is not None and known.open:
        return
    account = _MACHINE if token is None else hashlib.sha256(token.encode()).hexdigest()
    try:
        is_open = known is None and _is_open(name, token)
        if not is_open:
            _ask(name, token)
    except Exception as error:
        if _no_answer(error):
            # Of what nothing is noted, nothing was kept from anybody when it was fetched.
            if known is None or account in known.accounts:
                return
        elif known is not None and account in known.accounts:
            _Known(known.open, [one for one in known.accounts if one != account]).write(path)
        raise
    accounts = [] if known is None else known.accounts
    if known is None or account not in accounts:
        _Known(is_open, [*accounts, account]).write(path)


def _is_open(name: str, token: str | None) -> bool:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, token=token)
    return not (info.gated or info.private)


def _ask(name: str, token: str | None) -> None:
    from huggingface_hub import HfApi

    HfApi().auth_check(name, token=token)


def _no_answer(error: Exception) -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode() or is_away(error)


def _place(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), _NOTE)

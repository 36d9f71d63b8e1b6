"""Whether an account may have a model that this machine's cache may hold already.

The cache is shared by all tenants, and the hub's client hands out what lies in it without asking.
So a closed model (gated or private) is asked for with the token of whoever wants it, each time; the
answers are noted beside the model: while the hub is away, who had it before has it on for
CELORA_HUB_AWAY_DAYS, and nobody else. An open one is asked about once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from models.settings import settings
from training_data.access import access
from training_data.hub_reach import is_away

_NOTE = "celora-access.json"
_MACHINE = "machine"  # HF_TOKEN, or nobody
_DAY_SECONDS = 86_400.0
_NOTED_SECONDS = 3600.0  # how often a yes that is known is noted anew


@dataclass
class _Known:
    open: bool
    # That may have it, as the hub answered last, and when that was: digests of their tokens.
    accounts: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> _Known | None:
        try:
            noted = json.loads(path.read_text())
            accounts = noted["accounts"]
            if isinstance(accounts, list):  # an earlier version wrote no times
                accounts = dict.fromkeys(accounts, path.stat().st_mtime)
            return cls(bool(noted["open"]), {str(one): float(at) for one, at in accounts.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
        if _may_go_on(known, account, error):
            return
        if known is not None and account in known.accounts and not _no_answer(error):
            del known.accounts[account]
            known.write(path)
        raise
    known = known or _Known(is_open, {})
    if time.time() - known.accounts.get(account, 0.0) > _NOTED_SECONDS:
        known.accounts[account] = time.time()
        known.write(path)


def _may_go_on(known: _Known | None, account: str, error: Exception) -> bool:
    """Whether the hub gave no answer, and an earlier one still holds."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():  # no hub is ever asked: the cache is what the administrator put there
        return known is None or account in known.accounts
    if known is None or account not in known.accounts:
        return False
    age = time.time() - known.accounts[account]
    return is_away(error) and age < settings().hub_away_days * _DAY_SECONDS


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

"""Secrets that have to be kept: sealed before they are written, opened only where they are used.

CELORA_SECRET_KEY holds one or more Fernet keys, separated by commas. The first one seals, all of
them open: a key is replaced by putting the new one in front, and dropping the old one later.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

from models.errors import SetupError
from models.settings import settings

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_SETTING = "CELORA_SECRET_KEY"


def new_key() -> str:
    """A key for CELORA_SECRET_KEY. Raises SetupError."""
    key: bytes = _fernet().Fernet.generate_key()
    return key.decode()


def require_key() -> None:
    """Raise SetupError where nothing can be sealed: ask before a secret is asked for."""
    _keys()


def seal(secret: str) -> str:
    """`secret` as text that says nothing without the key. Raises SetupError."""
    return _keys().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    """What `seal` was given. Raises SetupError, which never carries the secret."""
    keys = _keys()
    try:
        return keys.decrypt(sealed.encode()).decode()
    except _fernet().InvalidToken:
        raise SetupError(
            "a stored secret was sealed with a key that is not there",
            where=_SETTING,
            remedy="append the key that was in use before, after a comma",
        ) from None


def _keys() -> MultiFernet:
    wanted = settings().secret_key
    text = wanted.get_secret_value() if wanted is not None else ""
    keys = tuple(part.strip() for part in text.split(",") if part.strip())
    if not keys:
        raise SetupError(
            "no key is set, and secrets are not stored without one",
            where=_SETTING,
            remedy="make one with `celora db new-key` and set it for every process of Celora",
        )
    return _multi(keys)


@lru_cache(maxsize=2)
def _multi(keys: tuple[str, ...]) -> MultiFernet:
    library = _fernet()
    try:
        made: MultiFernet = library.MultiFernet([library.Fernet(key) for key in keys])
    except ValueError:
        raise SetupError(
            "one of the keys is no Fernet key (32 bytes in URL-safe base64)",
            where=_SETTING,
            remedy="make one with `celora db new-key`",
        ) from None
    return made


def _fernet() -> ModuleType:
    try:
        from cryptography import fernet
    except ImportError:
        raise SetupError(
            "secrets cannot be sealed: the cryptography library is not installed",
            remedy="pip install 'celora[notify]' (or 'celora[api]')",
        ) from None
    return fernet

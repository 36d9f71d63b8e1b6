"""API keys: made once, shown once, and known afterwards by their SHA-256 alone.

A key carries 256 random bits, so a plain digest hides it: there is nothing to guess, and salt or
stretching would only make every request slower.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from models.errors import InputError
from models.queries.api_keys import insert_key
from models.session import transaction

# Each scope holds those before it.
SCOPES = ("read", "submit", "admin")
_START = "sk-celora-"
_KEY = re.compile(rf"{_START}[A-Za-z0-9_-]{{43}}")
_SHOWN = len(_START) + 6


@dataclass(frozen=True, slots=True)
class NewKey:
    id: str
    key: str = field(repr=False)  # for its owner's eyes, now and never again


def create_key(
    *,
    tenant: str,
    user: str,
    scopes: Iterable[str],
    name: str | None = None,
    requests_per_minute: int | None = None,
    expires_at: datetime | None = None,
) -> NewKey:
    """Make a key and put its digest on record. Raises InputError, UnavailableError."""
    asked = frozenset(scopes)
    if not asked or not asked <= set(SCOPES):
        raise InputError("there is no such scope", where="scope", remedy=f"use {', '.join(SCOPES)}")
    made = NewKey(f"key_{secrets.token_hex(12)}", _START + secrets.token_urlsafe(32))
    with transaction() as session:
        insert_key(
            session,
            made.id,
            digest=hashlib.sha256(made.key.encode()).digest(),
            prefix=made.key[:_SHOWN],
            name=name,
            tenant=tenant,
            user=user,
            scopes=[scope for scope in SCOPES if scope in asked],
            requests_per_minute=requests_per_minute,
            expires_at=expires_at,
        )
    return made


def digest_of(text: str) -> bytes | None:
    """What a key is looked up by; none for a text that cannot be a key of ours."""
    return hashlib.sha256(text.encode()).digest() if _KEY.fullmatch(text) else None


def with_lesser(scopes: Iterable[str]) -> frozenset[str]:
    """All that the scopes allow: `admin` may submit, and `submit` may read."""
    highest = max(SCOPES.index(scope) for scope in scopes)
    return frozenset(SCOPES[: highest + 1])

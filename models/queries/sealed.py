"""All that is sealed with CELORA_SECRET_KEY, for replacing the key."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import secrets
from models.errors import SetupError
from models.tables import HubToken, Target

_COLUMNS: tuple[tuple[str, InstrumentedAttribute[str] | InstrumentedAttribute[str | None]], ...] = (
    ("hub tokens", HubToken.sealed),
    ("addresses of notifications", Target.sealed_url),
    ("secrets of webhooks", Target.sealed_secret),
)


@dataclass(slots=True)
class Sealed:
    """How many secrets are stored, and which of them the present keys do not open."""

    count: int = 0
    closed: dict[str, int] = field(default_factory=dict)  # kind → how many
    why: str | None = None  # of one that does not open


def reseal(session: Session) -> int:
    """Seal every stored secret anew, with the first key; returns how many. Raises SetupError."""
    count = 0
    for _, column in _COLUMNS:
        rows = session.scalars(
            select(column.class_).where(column.is_not(None)).with_for_update(key_share=True)
        )
        for row in rows:
            setattr(row, column.key, secrets.seal(secrets.unseal(getattr(row, column.key))))
            count += 1
    session.flush()
    return count


def try_keys(session: Session) -> Sealed:
    """Open every stored secret, and keep none."""
    found = Sealed()
    for kind, column in _COLUMNS:
        for sealed in session.scalars(select(column).where(column.is_not(None))):
            found.count += 1
            try:
                secrets.unseal(str(sealed))
            except SetupError as error:
                found.closed[kind] = found.closed.get(kind, 0) + 1
                found.why = error.what
    return found

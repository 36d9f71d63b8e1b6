"""All that is sealed with CELORA_SECRET_KEY, for replacing the key."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from models import secrets
from models.tables import HubToken, Target

_COLUMNS: tuple[InstrumentedAttribute[str] | InstrumentedAttribute[str | None], ...] = (
    HubToken.sealed,
    Target.sealed_url,
    Target.sealed_secret,
)


def reseal(session: Session) -> int:
    """Seal every stored secret anew, with the first key; returns how many. Raises SetupError."""
    count = 0
    for column in _COLUMNS:
        rows = session.scalars(
            select(column.class_).where(column.is_not(None)).with_for_update(key_share=True)
        )
        for row in rows:
            setattr(row, column.key, secrets.seal(secrets.unseal(getattr(row, column.key))))
            count += 1
    session.flush()
    return count

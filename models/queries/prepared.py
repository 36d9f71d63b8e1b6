"""Prepared data on record: found by its digest, shared by the jobs of all tenants.

A preparation notes that it uses a place before it looks at its files; the sweep takes only what
has long not been used, and tests that on the row itself. So neither can miss the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models import store
from models.settings import settings


@dataclass(frozen=True, slots=True)
class Place:
    url: str
    on_record: bool  # False: nothing is, or what was there has been swept


def find_place(session: Session, digest: str) -> Place:
    """Where data of this digest lies, or has to be put. Notes that it is used from now on."""
    values = {"digest": digest, "root": _root()}
    url = session.scalar(_USE, values)
    if url is not None:
        return Place(url, on_record=True)
    used = session.scalar(_KNOWN, values) is not None
    again = used or not store.is_local(settings().artifacts_url)
    return Place(store.prepared_url(digest, again=again), on_record=False)


def register_prepared(session: Session, digest: str, url: str, size_bytes: int) -> str:
    """Put prepared data on record; returns its place.

    Which is another one where a second preparation of the same was quicker: this one's files are
    then an orphan.
    """
    return str(
        session.scalar(
            _REGISTER, {"digest": digest, "url": url, "size_bytes": size_bytes, "root": _root()}
        )
    )


def _root() -> str:
    """What lies elsewhere was prepared before the store was moved: it is not looked for there."""
    return store.join(settings().artifacts_url, "prepared") + "/"


_USE = text("""
    UPDATE prepared_data SET last_used_at = clock_timestamp()
    WHERE digest = :digest AND deleted_at IS NULL AND starts_with(url, :root)
    RETURNING url
""")

_KNOWN = text("SELECT url FROM prepared_data WHERE digest = :digest")

_REGISTER = text("""
    INSERT INTO prepared_data AS held (digest, url, size_bytes) VALUES (:digest, :url, :size_bytes)
    ON CONFLICT (digest) DO UPDATE SET
        url = CASE WHEN held.deleted_at IS NULL AND starts_with(held.url, :root)
            THEN held.url ELSE excluded.url END,
        size_bytes = CASE WHEN held.deleted_at IS NULL AND starts_with(held.url, :root)
            THEN held.size_bytes ELSE excluded.size_bytes END,
        last_used_at = clock_timestamp(), deleted_at = NULL
    RETURNING url
""")

"""Keys of the HTTP API: made, listed, revoked; and what happens with one at every request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import NotFoundError
from models.queries.lanes import user_id_of
from models.tables import ApiKey, Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """A key on record, as `celora keys list` shows it."""

    id: str
    prefix: str
    name: str | None
    tenant: str
    user: str
    scopes: tuple[str, ...]
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A living key at one request, and what it may still spend."""

    key_id: str
    tenant_id: int
    tenant: str
    user: str
    scopes: tuple[str, ...]
    limit: int  # requests a minute; 0: any number
    allowed: bool
    spent_seconds: float  # of its 60: one request costs 60 / limit


def insert_key(
    session: Session,
    key_id: str,
    *,
    digest: bytes,
    prefix: str,
    name: str | None,
    tenant: str,
    user: str,
    scopes: Sequence[str],
    requests_per_minute: int | None,
    expires_at: datetime | None,
) -> None:
    """Put a key on record; its tenant and user are made at the first use of their names."""
    session.execute(upsert(Tenant).values(name=tenant).on_conflict_do_nothing())
    tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == tenant)).one()
    user_id_of(session, tenant_id, user)
    session.add(
        ApiKey(
            id=key_id,
            digest=digest,
            prefix=prefix,
            name=name,
            tenant_id=tenant_id,
            user_name=user,
            scopes=list(scopes),
            requests_per_minute=requests_per_minute,
            expires_at=expires_at,
        )
    )
    session.flush()


def list_keys(session: Session, *, tenant: str | None, revoked: bool) -> list[KeyView]:
    """The oldest first; those that were revoked or are over only where `revoked`."""
    found = select(ApiKey, Tenant.name).join(Tenant, Tenant.id == ApiKey.tenant_id)
    if tenant is not None:
        found = found.where(Tenant.name == tenant)
    if not revoked:
        alive = func.coalesce(ApiKey.expires_at > func.now(), True)
        found = found.where(ApiKey.revoked_at.is_(None), alive)
    return [
        KeyView(
            id=key.id,
            prefix=key.prefix,
            name=key.name,
            tenant=tenant_name,
            user=key.user_name,
            scopes=tuple(key.scopes),
            requests_per_minute=key.requests_per_minute,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )
        for key, tenant_name in session.execute(found.order_by(ApiKey.created_at, ApiKey.id))
    ]


def revoke_key(session: Session, key_id: str) -> None:
    """From the next request on it opens nothing, and what it streams ends. Raises NotFoundError."""
    revoked = (
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
    )
    if session.execute(revoked.returning(ApiKey.id)).first() is None:
        raise NotFoundError(
            "there is no such key", where=key_id, remedy="`celora keys list` shows them"
        )


def living_keys(session: Session, key_ids: Iterable[str]) -> set[str]:
    """Of these keys those that are neither revoked nor over."""
    alive = func.coalesce(ApiKey.expires_at > func.now(), True)
    return set(
        session.scalars(
            select(ApiKey.id).where(
                ApiKey.id.in_(list(key_ids)), ApiKey.revoked_at.is_(None), alive
            )
        )
    )


def admit(session: Session, digest: bytes, *, default_limit: int) -> Admission | None:
    """Look a key up and spend one request of its rate, in one statement. None: no living key.

    The rate is a point in time (GCRA): each request moves `free_at` by 60 / limit seconds, and one
    that would move it more than 60 seconds into the future is refused and moves nothing. All
    processes of the API share the row, so the limit holds for them together.
    """
    row = session.execute(_ADMIT, {"digest": digest, "default_limit": default_limit}).one_or_none()
    if row is None:
        return None
    return Admission(
        key_id=row.id,
        tenant_id=row.tenant_id,
        tenant=row.tenant,
        user=row.user_name,
        scopes=tuple(row.scopes),
        limit=row.per_minute,
        allowed=row.per_minute == 0 or row.spent is not None,
        spent_seconds=float(row.spent if row.spent is not None else row.before or 0),
    )


_ADMIT = text("""
    WITH known AS (
        SELECT api_keys.id, tenant_id, tenants.name AS tenant, user_name, scopes, last_used_at,
               coalesce(requests_per_minute, :default_limit) AS per_minute
        FROM api_keys JOIN tenants ON tenants.id = api_keys.tenant_id
        WHERE digest = :digest AND revoked_at IS NULL AND coalesce(expires_at > now(), true)
    ), spent AS (
        INSERT INTO api_rates AS rate (key_id, free_at)
        SELECT id, now() + interval '60s' / per_minute FROM known WHERE per_minute > 0
        ON CONFLICT (key_id) DO UPDATE
            SET free_at = greatest(rate.free_at, now()) + (excluded.free_at - now())
            WHERE greatest(rate.free_at, now()) + (excluded.free_at - now())
                <= now() + interval '60s'
        RETURNING free_at
    ), used AS (
        UPDATE api_keys SET last_used_at = now() FROM known
        WHERE api_keys.id = known.id
          AND coalesce(known.last_used_at < now() - interval '60s', true)
    )
    SELECT known.*,
           (SELECT extract(epoch FROM free_at - now()) FROM spent) AS spent,
           (SELECT extract(epoch FROM free_at - now()) FROM api_rates WHERE key_id = known.id)
               AS before
    FROM known
""")

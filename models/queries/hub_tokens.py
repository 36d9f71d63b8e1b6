"""Tokens of tenants for the hub, sealed: what opens them is not in the database."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.queries.tenants import no_such_tenant
from models.tables import HubToken, Tenant


def set_hub_token(session: Session, tenant: str, sealed: str) -> None:
    """Raises NotFoundError for a tenant that there is not."""
    values = {"tenant_id": tenant_id_of(session, tenant), "sealed": sealed}
    made = upsert(HubToken).values(values)
    renewed = {"sealed": made.excluded.sealed, "created_at": func.now()}
    session.execute(made.on_conflict_do_update(index_elements=["tenant_id"], set_=renewed))


def remove_hub_token(session: Session, tenant: str) -> bool:
    """False: it had none. Raises NotFoundError for a tenant that there is not."""
    own = HubToken.tenant_id == tenant_id_of(session, tenant)
    gone = session.execute(delete(HubToken).where(own).returning(HubToken.tenant_id))
    return gone.first() is not None


def hub_tokens(session: Session) -> list[tuple[str, datetime]]:
    """Which tenants have one, and since when."""
    found = select(Tenant.name, HubToken.created_at).join(HubToken, HubToken.tenant_id == Tenant.id)
    return [(name, since) for name, since in session.execute(found.order_by(Tenant.name))]


def tenant_with_token(session: Session, tenant: str) -> tuple[int, str | None]:
    """The tenant's id, and its sealed token where it has one."""
    found = select(Tenant.id, HubToken.sealed).outerjoin(HubToken).where(Tenant.name == tenant)
    row = session.execute(found).one_or_none()
    if row is None:
        raise no_such_tenant(tenant)
    return row.id, row.sealed


def tenant_id_of(session: Session, tenant: str) -> int:
    """Raises NotFoundError."""
    found = session.scalar(select(Tenant.id).where(Tenant.name == tenant))
    if found is None:
        raise no_such_tenant(tenant)
    return found

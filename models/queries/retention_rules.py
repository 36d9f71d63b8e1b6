"""Every tenant's rules of retention, and how a statement is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from models.errors import InputError
from models.retention import RetentionRules, parse_rules
from models.settings import settings
from models.tables import Tenant


@dataclass(frozen=True, slots=True)
class TenantRules:
    tenant_id: int
    tenant: str
    rules: RetentionRules
    problem: str | None = None  # why its own rules could not be read; the defaults hold then


def rules_of_tenants(session: Session) -> list[TenantRules]:
    """What holds for each tenant; rules that cannot be read are the defaults, with the problem."""
    found = []
    for row in session.execute(select(Tenant.id, Tenant.name, Tenant.retention)):
        try:
            found.append(TenantRules(row.id, row.name, parse_rules(row.retention)))
        except InputError as error:
            found.append(TenantRules(row.id, row.name, RetentionRules(), str(error)))
    return found


def set_rules(session: Session, tenant: str, fields: dict[str, Any]) -> bool:
    """Replace a tenant's own rules; False: there is no such tenant."""
    changed = session.execute(
        update(Tenant)
        .where(Tenant.name == tenant)
        .values(retention=fields)
        .returning(Tenant.id)
        .execution_options(synchronize_session=False)
    )
    return bool(changed.all())


def rule_values(rules: Sequence[TenantRules]) -> dict[str, Any]:
    """Parameters of a statement that `with_rules` made."""
    return {
        "rules": [
            {"tenant_id": one.tenant_id, "kind": kind} | rule
            for one in rules
            for kind, rule in one.rules.model_dump().items()
        ],
        "default_days": RetentionRules().prepared.max_age_days,
        "orphan_seconds": settings().orphan_seconds,
    }


def take_time(session: Session) -> None:
    """For a look through everything there is: nobody waits for it, and it locks nothing."""
    session.execute(text("SET LOCAL statement_timeout = '300s'"))


def with_rules(sql: str) -> TextClause:
    """A statement whose WITH clause begins with RULES."""
    return text(sql).bindparams(bindparam("rules", type_=JSONB))


# States of a job that is not over.
UNFINISHED = "'pending', 'queued', 'running', 'paused'"

RULES = """
    rules AS MATERIALIZED (
        SELECT kind, tenant_id, failed_max_age_days * interval '1 day' AS failed_max_age,
               max_age_days * interval '1 day' AS max_age, keep, max_bytes
        FROM jsonb_to_recordset(:rules) AS rules (
            kind text, tenant_id bigint, max_age_days double precision,
            failed_max_age_days double precision, keep bigint, max_bytes bigint)
    ), counted AS (  -- rules by count or bytes: only for these tenants is anything put in order
        SELECT * FROM rules WHERE keep IS NOT NULL OR max_bytes IS NOT NULL
    )
"""

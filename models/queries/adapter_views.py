"""Versions as people see them: lineage, aliases, and what their evaluation and people said."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.queries.adapters import find_version
from models.queries.ratings import win_rates
from models.tables import Adapter, AdapterAlias, AdapterName, Evaluation, Tenant
from models.win_rate import WinRate

_FIGURES = ("loss", "perplexity", "token_accuracy", "exact_match", "bleu", "rouge_l")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One version under a name, and all that it was made from."""

    tenant: str
    name: str
    version: int
    aliases: list[str]
    job_id: str
    kind: str  # adapter; model for method full
    url: str
    size_bytes: int
    digest: str | None
    data_digest: str | None
    base_model: str
    base_revision: str | None
    method: str
    rank: int | None
    seed: int
    spec: dict[str, Any]
    code_versions: dict[str, str]
    registered_by: str
    registered_at: datetime
    evaluation: dict[str, dict[str, float | None]]  # base, tuned → metric → value
    win_rate: WinRate

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.version}"

    def as_json(self) -> dict[str, Any]:
        return {"reference": self.reference} | asdict(self) | {"win_rate": self.win_rate.as_json()}


def list_versions(
    session: Session, *, tenant: str | None = None, name: str | None = None, limit: int = 50
) -> list[AdapterVersion]:
    """The newest first; those that were deleted are left out."""
    statement = (
        select(Adapter, AdapterName, Tenant.name)
        .join(AdapterName, AdapterName.id == Adapter.name_id)
        .join(Tenant, Tenant.id == AdapterName.tenant_id)
        .where(Adapter.deleted_at.is_(None))
        .order_by(Adapter.id.desc())
        .limit(limit)
    )
    if tenant is not None:
        statement = statement.where(Tenant.name == tenant)
    if name is not None:
        statement = statement.where(AdapterName.name == name)
    return _views(session, [tuple(row) for row in session.execute(statement)])


def get_version(session: Session, tenant: str | None, reference: str) -> AdapterVersion:
    """By name/version or name@alias. Raises NotFoundError, InputError."""
    return _views(session, [find_version(session, tenant, reference)])[0]


def references_of(session: Session, job_id: str) -> list[str]:
    """The versions that a job's adapter is, as name/version."""
    rows = session.execute(
        select(AdapterName.name, Adapter.version)
        .join(AdapterName, AdapterName.id == Adapter.name_id)
        .where(Adapter.job_id == job_id, Adapter.deleted_at.is_(None))
        .order_by(Adapter.id)
    )
    return [f"{name}/{version}" for name, version in rows]


def _views(session: Session, found: list[tuple[Any, ...]]) -> list[AdapterVersion]:
    job_ids = [adapter.job_id for adapter, _, _ in found]
    aliases: dict[int, list[str]] = defaultdict(list)
    of_these = AdapterAlias.adapter_id.in_([adapter.id for adapter, _, _ in found])
    for one in session.scalars(select(AdapterAlias).where(of_these).order_by(AdapterAlias.alias)):
        aliases[one.adapter_id].append(one.alias)
    evaluations: dict[str, dict[str, dict[str, float | None]]] = defaultdict(dict)
    columns = [getattr(Evaluation, figure) for figure in _FIGURES]
    statement = select(Evaluation.job_id, Evaluation.subject, *columns)
    for job_id, subject, *values in session.execute(
        statement.where(Evaluation.job_id.in_(job_ids)).order_by(Evaluation.subject)
    ):
        evaluations[job_id][subject] = dict(zip(_FIGURES, values, strict=True))
    ratings = win_rates(session, job_ids)
    copied = set(AdapterVersion.__dataclass_fields__) & set(Adapter.__table__.columns.keys())
    return [
        AdapterVersion(
            tenant=tenant,
            name=name.name,
            aliases=aliases[adapter.id],
            evaluation=evaluations.get(adapter.job_id, {}),
            win_rate=ratings.get(adapter.job_id) or WinRate(0, 0, 0, 0),
            **{column: getattr(adapter, column) for column in copied},
        )
        for adapter, name, tenant in found
    ]

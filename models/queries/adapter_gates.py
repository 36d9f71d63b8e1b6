"""Gates of an alias: set, listed, and judged for a version by what is on record about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import InputError, NotFoundError
from models.gates import METRICS, Figure, Gate, Standing, judge
from models.queries.adapters import find_name, lock_name, require_plain_name
from models.queries.jobs import get_job
from models.queries.products import evaluations_of
from models.queries.ratings import win_rate_of
from models.tables import Adapter, AdapterAlias, AdapterGate, AdapterMove, AdapterName, Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    name: str
    alias: str
    metric: str
    against: str
    least: float
    set_by: str
    set_at: datetime


def set_gate(
    session: Session, tenant: str | None, name: str, alias: str, gate: Gate, *, who: str
) -> None:
    """Set or replace a gate. Raises NotFoundError, InputError."""
    require_plain_name(alias, "ALIAS")
    _require_known(gate.metric, gate.against)
    if not 0 <= gate.least < float("inf"):
        raise InputError(
            "a least improvement is 0 or more", where="--least", remedy="give 0, 0.01, …"
        )
    row, _ = lock_name(session, tenant, name)
    key = {"name_id": row.id, "alias": alias, "metric": gate.metric, "against": gate.against}
    values = {"least": gate.least, "set_by": who}
    session.execute(
        upsert(AdapterGate)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=list(key), set_=values)
    )


def remove_gate(
    session: Session, tenant: str | None, name: str, alias: str, metric: str, *, against: str
) -> None:
    """Raises NotFoundError, InputError."""
    _require_known(metric, against)
    row, _ = lock_name(session, tenant, name)
    gone = session.execute(
        delete(AdapterGate)
        .where(
            AdapterGate.name_id == row.id,
            AdapterGate.alias == alias,
            AdapterGate.metric == metric,
            AdapterGate.against == against,
        )
        .returning(AdapterGate.alias)
    ).one_or_none()
    if gone is None:
        raise NotFoundError(
            f"{name}@{alias} has no gate on {metric} against the {against}",
            remedy=f"`celora adapters gates {name}` lists them",
        )


def gates_of(session: Session, tenant: str | None, name: str) -> list[GateView]:
    """Raises NotFoundError, InputError."""
    row, _ = find_name(session, tenant, name)
    gates = session.scalars(
        select(AdapterGate)
        .where(AdapterGate.name_id == row.id)
        .order_by(AdapterGate.alias, AdapterGate.metric, AdapterGate.against)
    )
    return [
        GateView(
            name=name,
            alias=gate.alias,
            metric=gate.metric,
            against=gate.against,
            least=gate.least,
            set_by=gate.set_by,
            set_at=gate.set_at,
        )
        for gate in gates
    ]


def judge_version(
    session: Session, row: AdapterName, alias: str, candidate: Adapter
) -> list[Figure]:
    """Every gate of an alias, for one version. Who took an alias away is still compared with."""
    gates = session.scalars(
        select(AdapterGate)
        .where(AdapterGate.name_id == row.id, AdapterGate.alias == alias)
        .order_by(AdapterGate.metric, AdapterGate.against)
    ).all()
    if not gates:
        return []
    holder = holder_of(session, row, alias) or _last_holder(session, row, alias)
    mine = _standing(session, row, candidate)
    theirs = None if holder is None else _standing(session, row, holder)
    return [judge(Gate(gate.metric, gate.against, gate.least), mine, theirs) for gate in gates]


def holder_of(session: Session, row: AdapterName, alias: str) -> Adapter | None:
    return session.scalars(
        select(Adapter)
        .join(AdapterAlias, AdapterAlias.adapter_id == Adapter.id)
        .where(AdapterAlias.name_id == row.id, AdapterAlias.alias == alias)
    ).one_or_none()


def past_holders(session: Session, row: AdapterName, alias: str) -> list[int]:
    """Ids of the versions that held the alias, the newest last, as a rollback walks them: what was
    rolled back from is gone."""
    moves: Sequence[AdapterMove] = session.scalars(
        select(AdapterMove)
        .where(AdapterMove.name_id == row.id, AdapterMove.alias == alias)
        .order_by(AdapterMove.id)
    ).all()
    past: list[int] = []
    for move in moves:
        if move.kind == "rolled_back" and move.to_id in past:
            while past[-1] != move.to_id:
                past.pop()
        elif move.to_id is not None:
            past.append(move.to_id)
    return past


def _standing(session: Session, row: AdapterName, adapter: Adapter) -> Standing:
    job = get_job(session, adapter.job_id)
    found = evaluations_of(session, adapter.job_id)
    settings = ("eval_generate_rows", "eval_max_new_tokens", "eval_answer_pattern")
    return Standing(
        label=f"{row.name}/{adapter.version}",
        held_out=(job.verdict or {}).get("held_out_digest") or adapter.data_digest,
        answered=tuple(adapter.spec.get(setting) for setting in settings),
        base=_values(found.get("base")),
        tuned=_values(found.get("tuned")),
        ratings=win_rate_of(session, adapter.job_id),
    )


def _values(evaluation: Evaluation | None) -> dict[str, float | None] | None:
    if evaluation is None:
        return None
    return {name: getattr(evaluation, name) for name in METRICS if name != "win_rate"}


def _last_holder(session: Session, row: AdapterName, alias: str) -> Adapter | None:
    past = past_holders(session, row, alias)
    return session.get_one(Adapter, past[-1]) if past else None


def _require_known(metric: str, against: str) -> None:
    if metric not in METRICS:
        raise InputError(f"{metric!r} is no metric", where="METRIC", remedy=", ".join(METRICS))
    if against not in {"base", "holder"}:
        raise InputError(f"{against!r} is not known", where="--against", remedy="base or holder")

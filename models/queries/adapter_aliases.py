"""Aliases of a name: they move to a version when its gates hold, and every move stays on record.

Whoever moves one locks the name's row: two moves, or a move and a deletion, take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from models.errors import GateError, InputError, NotFoundError, StateError
from models.gates import Figure
from models.queries.adapter_gates import holder_of, judge_version, past_holders
from models.queries.adapters import find_name, lock_name, require_plain_name
from models.queries.history import printable
from models.tables import Adapter, AdapterAlias, AdapterMove, AdapterName


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """One move of an alias; versions are numbers."""

    name: str
    alias: str
    kind: str  # moved, forced, rolled_back, removed
    from_version: int | None
    to_version: int | None
    figures: list[dict[str, Any]]  # models/gates.py: Figure, one a gate
    reason: str | None
    moved_by: str
    moved_at: datetime


def move_alias(
    session: Session,
    tenant: str | None,
    name: str,
    alias: str,
    version: int | None,
    *,
    who: str,
    force: str | None = None,
) -> AliasMove | None:
    """Point an alias at a version, or (None) at nothing; None when it points there already.

    `force` is the reason for which a gate that does not hold is overruled. Raises NotFoundError,
    InputError; GateError when a gate does not hold.
    """
    require_plain_name(alias, "ALIAS")
    if force is not None and not force.strip():
        raise InputError("a forced move needs a reason", where="--force", remedy="say why")
    row, _ = lock_name(session, tenant, name)
    holder = holder_of(session, row, alias)
    if version is None:
        if holder is None:
            raise _no_such_alias(name, alias)
        return _move(session, row, alias, "removed", holder=holder, to=None, who=who)
    candidate = _version(session, row, version)
    if holder is not None and holder.id == candidate.id:
        return None
    figures = judge_version(session, row, alias, candidate)
    failed = [figure for figure in figures if not figure.holds]
    if failed and force is None:
        stays = "unset" if holder is None else f"at version {holder.version}"
        raise GateError(
            f"{name}@{alias} stays {stays}: " + "; ".join(figure.why for figure in failed),
            where=f"{name}/{version}",
            remedy='train a better one, or overrule the gate with --force "the reason"',
        )
    kind = "forced" if failed else "moved"
    return _move(
        session,
        row,
        alias,
        kind,
        holder=holder,
        to=candidate,
        who=who,
        figures=figures,
        reason=force,
    )


def roll_back(
    session: Session, tenant: str | None, name: str, alias: str, *, who: str, reason: str | None
) -> AliasMove:
    """Give an alias back to whom it belonged before, without asking the gates again.

    Once more goes back one further. Raises NotFoundError, StateError.
    """
    row, _ = lock_name(session, tenant, name)
    holder = holder_of(session, row, alias)
    if holder is None and not past_holders(session, row, alias):
        raise _no_such_alias(name, alias)
    for adapter_id in reversed(past_holders(session, row, alias)):
        adapter = session.get_one(Adapter, adapter_id)
        if adapter.deleted_at is None and adapter != holder:
            return _move(
                session,
                row,
                alias,
                "rolled_back",
                holder=holder,
                to=adapter,
                who=who,
                reason=reason,
            )
    raise StateError(
        f"{name}@{alias} has no earlier version to go back to",
        remedy=f"`celora adapters history {name}` shows its moves",
    )


def moves_of(
    session: Session, tenant: str | None, name: str, alias: str | None = None, *, limit: int = 50
) -> list[AliasMove]:
    """The newest first. Raises NotFoundError, InputError."""
    row, _ = find_name(session, tenant, name)
    before, after = aliased(Adapter), aliased(Adapter)
    statement = (
        select(AdapterMove, before.version, after.version)
        .outerjoin(before, before.id == AdapterMove.from_id)
        .outerjoin(after, after.id == AdapterMove.to_id)
        .where(AdapterMove.name_id == row.id)
        .order_by(AdapterMove.id.desc())
        .limit(limit)
    )
    if alias is not None:
        statement = statement.where(AdapterMove.alias == alias)
    return [_seen(move, name, old, new) for move, old, new in session.execute(statement)]


def _version(session: Session, row: AdapterName, version: int) -> Adapter:
    adapter = session.scalars(
        select(Adapter).where(
            Adapter.name_id == row.id, Adapter.version == version, Adapter.deleted_at.is_(None)
        )
    ).one_or_none()
    if adapter is None:
        raise NotFoundError(
            f"there is no version {row.name}/{version}",
            remedy=f"`celora adapters --name {row.name}` lists what there is",
        )
    return adapter


def _move(
    session: Session,
    row: AdapterName,
    alias: str,
    kind: str,
    *,
    holder: Adapter | None,
    to: Adapter | None,
    who: str,
    figures: Sequence[Figure] = (),
    reason: str | None = None,
) -> AliasMove:
    key = {"name_id": row.id, "alias": alias}
    if to is None:
        session.execute(delete(AdapterAlias).filter_by(**key))
    else:
        session.execute(
            upsert(AdapterAlias)
            .values(**key, adapter_id=to.id)
            .on_conflict_do_update(index_elements=list(key), set_={"adapter_id": to.id})
        )
    move = AdapterMove(
        **key,
        kind=kind,
        from_id=None if holder is None else holder.id,
        to_id=None if to is None else to.id,
        figures=[figure.as_json() for figure in figures],
        reason=None if reason is None else printable(reason),
        moved_by=who,
    )
    session.add(move)
    session.flush()
    return _seen(
        move,
        row.name,
        None if holder is None else holder.version,
        None if to is None else to.version,
    )


def _seen(move: AdapterMove, name: str, before: int | None, after: int | None) -> AliasMove:
    return AliasMove(
        name=name,
        alias=move.alias,
        kind=move.kind,
        from_version=before,
        to_version=after,
        figures=list(move.figures),
        reason=move.reason,
        moved_by=move.moved_by,
        moved_at=move.moved_at,
    )


def _no_such_alias(name: str, alias: str) -> NotFoundError:
    return NotFoundError(
        f"{name} has no alias {alias!r}", remedy="`celora adapters` lists names and aliases"
    )

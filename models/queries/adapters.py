"""Adapters under a name: find one by any of its references, register by hand, list, delete."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.errors import InputError, NotFoundError, StateError
from models.queries.adapter_versions import add_version, artifact_of
from models.queries.fence import lock_job, no_such_job
from models.queries.jobs import get_job, resolve_job_id
from models.spec import ADAPTER_NAME_PATTERN, JobSpec, stored_spec
from models.tables import Adapter, AdapterAlias, AdapterName, Tenant

_NAME = re.compile(ADAPTER_NAME_PATTERN)
_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a reference leads to: the files of one adapter, and what they were made from."""

    reference: str  # name/version where it has one, else the job's id
    tenant: str
    job_id: str
    kind: str  # adapter; model for method full
    url: str
    size_bytes: int
    digest: str | None  # sha256 of the weights files
    base_model: str
    base_revision: str | None
    method: str
    spec: JobSpec


def resolve(session: Session, tenant: str | None, reference: str) -> Resolved:
    """The adapter that a job's id, `name/version` or `name@alias` means.

    With a tenant only its own are found; without one, a name that several tenants use is refused.
    Raises NotFoundError, InputError; StateError for a job that has left no adapter.
    """
    if "/" in reference or "@" in reference:
        adapter, name, owner = find_version(session, tenant, reference)
        return Resolved(
            reference=f"{name.name}/{adapter.version}",
            tenant=owner,
            job_id=adapter.job_id,
            kind=adapter.kind,
            url=adapter.url,
            size_bytes=adapter.size_bytes,
            digest=adapter.digest,
            base_model=adapter.base_model,
            base_revision=adapter.base_revision,
            method=adapter.method,
            spec=stored_spec(adapter.spec),
        )
    job_id = resolve_job_id(session, reference)
    job = get_job(session, job_id)
    if tenant is not None and job.tenant.name != tenant:
        raise no_such_job(reference)
    artifact = artifact_of(session, job_id)
    if artifact is None:
        raise StateError(
            f"job {job_id} ({job.state}) has no adapter",
            remedy="only a job that has finished its training has one, until retention deletes it",
        )
    return Resolved(
        reference=job_id,
        tenant=job.tenant.name,
        job_id=job_id,
        kind=artifact.kind,
        url=artifact.url,
        size_bytes=artifact.size_bytes,
        digest=artifact.digest,
        base_model=job.base_model,
        base_revision=job.base_revision,
        method=job.method,
        spec=stored_spec(job.spec),
    )


def find_version(
    session: Session, tenant: str | None, reference: str
) -> tuple[Adapter, AdapterName, str]:
    """The standing version that `name/version` or `name@alias` means, its name's row, its tenant.

    Raises NotFoundError, InputError.
    """
    name, mark, which = _parts(reference)
    row, owner = find_name(session, tenant, name)
    statement = select(Adapter).where(Adapter.name_id == row.id)
    if mark == "@":
        held = AdapterAlias.adapter_id == Adapter.id
        statement = statement.join(AdapterAlias, held).where(AdapterAlias.alias == which)
    else:
        statement = statement.where(Adapter.version == version_number(which))
    adapter = session.scalars(statement).one_or_none()
    if adapter is None or adapter.deleted_at is not None:
        gone = "was deleted" if adapter is not None else "is not there"
        raise NotFoundError(
            f"{reference} {gone}", remedy=f"`celora adapters --name {name}` lists what there is"
        )
    return adapter, row, owner


def find_name(session: Session, tenant: str | None, name: str) -> tuple[AdapterName, str]:
    """The row of a name, and whose it is. Raises NotFoundError; InputError where several are."""
    statement = (
        select(AdapterName, Tenant.name)
        .join(Tenant, Tenant.id == AdapterName.tenant_id)
        .where(AdapterName.name == name)
        .order_by(Tenant.name)
    )
    if tenant is not None:
        statement = statement.where(Tenant.name == tenant)
    found = session.execute(statement.limit(3)).all()
    if not found:
        raise NotFoundError(
            f"there is no adapter of the name {name!r}", remedy="`celora adapters` lists them"
        )
    if len(found) > 1:
        owners = ", ".join(owner for _, owner in found)
        raise InputError(
            f"several tenants have an adapter of the name {name!r}: {owners}",
            remedy="say whose with --tenant",
        )
    return found[0][0], found[0][1]


def lock_name(session: Session, tenant: str | None, name: str) -> tuple[AdapterName, str]:
    """`find_name`, and its row locked until the transaction ends: one change at a time."""
    row, owner = find_name(session, tenant, name)
    session.execute(
        select(AdapterName.id).where(AdapterName.id == row.id).with_for_update(key_share=True)
    )
    return row, owner


def register(session: Session, job_id: str, name: str, who: str) -> Resolved:
    """Make a completed job's adapter the next version of `name` by hand.

    Raises NotFoundError, InputError, StateError.
    """
    require_plain_name(name, "name")
    job, _ = lock_job(session, job_id)  # the sweep locks it as well, before it takes files
    adapter = add_version(session, job, name, who)
    session.flush()
    return resolve(session, job.tenant.name, f"{name}/{adapter.version}")


def delete(session: Session, tenant: str | None, reference: str, who: str) -> str:
    """Give up a version: its number stays used, its files follow the rules of retention again.

    Returns its name/version. Raises NotFoundError, InputError; StateError while an alias holds it.
    """
    name, mark, which = _parts(reference)
    if mark == "@":
        raise InputError(
            "an alias is no version", where=reference, remedy=f"name it as {name}/VERSION"
        )
    lock_name(session, tenant, name)
    adapter, row, _ = find_version(session, tenant, f"{name}/{which}")
    held = session.scalars(
        select(AdapterAlias.alias).where(AdapterAlias.adapter_id == adapter.id)
    ).all()
    if held:
        raise StateError(
            f"{reference} is {', '.join(sorted(held))}: a version that an alias holds stays",
            remedy=f"move the alias first: `celora adapters alias {name} {held[0]} VERSION|none`",
        )
    adapter.deleted_at, adapter.deleted_by = func.clock_timestamp(), who
    session.flush()
    return f"{row.name}/{adapter.version}"


def version_number(words: str) -> int:
    """Raises InputError."""
    if not words.isdecimal() or not words.isascii() or len(words) > len("2147483647") - 1:
        raise InputError(
            f"{words!r} is no version", where="VERSION", remedy="versions are 1, 2, 3, …"
        )
    return int(words)


def require_plain_name(name: str, where: str) -> None:
    """Raises InputError."""
    if len(name) > _NAME_LENGTH or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no plain name",
            where=where,
            remedy=f"use up to {_NAME_LENGTH} letters, digits, . _ -",
        )


def _parts(reference: str) -> tuple[str, str, str]:
    """Name, mark (/ or @), and version or alias. Raises InputError."""
    for mark in "/@":
        name, found, which = reference.partition(mark)
        if found and name and which and _NAME.fullmatch(name) and _NAME.fullmatch(which):
            return name, mark, which
    raise InputError(
        f"{reference!r} names no adapter",
        remedy="write a job's id, name/version (bot/3) or name@alias (bot@production)",
    )

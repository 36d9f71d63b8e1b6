"""The functions of `import celora` about adapters under a name, their aliases and ratings."""

from __future__ import annotations

from sqlalchemy.orm import Session

from celora.client import current_user
from celora.views import Job
from models.queries import adapter_aliases, adapter_views, ratings
from models.queries import adapters as adapter_queries
from models.queries.adapter_aliases import AliasMove
from models.queries.adapter_views import AdapterVersion
from models.queries.jobs import resolve_job_id
from models.session import transaction
from models.win_rate import WinRate


def adapters(
    *, tenant: str | None = None, name: str | None = None, limit: int = 50
) -> list[AdapterVersion]:
    """Versions under a name, the newest first."""
    with transaction() as session:
        return adapter_views.list_versions(session, tenant=tenant, name=name, limit=limit)


def adapter(reference: str, *, tenant: str | None = None) -> AdapterVersion:
    """One version, by name/version or name@alias. Raises NotFoundError, InputError."""
    with transaction() as session:
        return adapter_views.get_version(session, tenant, reference)


def register_adapter(job: str | Job, name: str, *, user: str | None = None) -> AdapterVersion:
    """Make a completed job's adapter the next version of `name`; one that it is already is
    returned. A job does it by itself where `adapter_name` is set.

    Raises NotFoundError, InputError, StateError.
    """
    with transaction() as session:
        found = adapter_queries.register(session, _id(session, job), name, user or current_user())
        return adapter_views.get_version(session, found.tenant, found.reference)


def delete_adapter(reference: str, *, tenant: str | None = None, user: str | None = None) -> str:
    """Give up a version; its number is never used again, its files follow the rules of retention.

    Returns its name/version. Raises NotFoundError, InputError; StateError while an alias holds it.
    """
    with transaction() as session:
        return adapter_queries.delete(session, tenant, reference, user or current_user())


def move_alias(
    name: str,
    alias: str,
    version: int | None,
    *,
    tenant: str | None = None,
    user: str | None = None,
    force: str | None = None,
) -> AliasMove | None:
    """Point an alias at a version, or (None) take it away, if its gates hold.

    `force` is the reason for which gates that do not hold are overruled. Returns None when the
    alias is there already. Raises NotFoundError, InputError; GateError when a gate does not hold.
    """
    with transaction() as session:
        return adapter_aliases.move_alias(
            session, tenant, name, alias, version, who=user or current_user(), force=force
        )


def roll_back_alias(
    name: str,
    alias: str,
    *,
    tenant: str | None = None,
    user: str | None = None,
    reason: str | None = None,
) -> AliasMove:
    """Give an alias back to the version that held it before. Raises NotFoundError, StateError."""
    with transaction() as session:
        return adapter_aliases.roll_back(
            session, tenant, name, alias, who=user or current_user(), reason=reason
        )


def win_rate(job: str | Job) -> WinRate:
    """How often people preferred the tuned model's answer. Raises NotFoundError."""
    with transaction() as session:
        return ratings.win_rate_of(session, _id(session, job))


def _id(session: Session, job: str | Job) -> str:
    return job.id if isinstance(job, Job) else resolve_job_id(session, job)

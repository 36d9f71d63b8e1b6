"""Giving out the next version of a name. Whoever does locks the name's row: no number is given
twice, and none is left out, as a transaction that fails gives its number back."""

from __future__ import annotations

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.errors import StateError
from models.queries.history import add_event
from models.states import JobState, Purpose
from models.tables import Adapter, AdapterAlias, AdapterName, Artifact, Job


def artifact_of(session: Session, job_id: str) -> Artifact | None:
    """The newest adapter or model of a job that stands."""
    return session.scalars(
        select(Artifact)
        .where(
            Artifact.job_id == job_id,
            Artifact.deleted_at.is_(None),
            Artifact.kind.in_(["adapter", "model"]),
        )
        .order_by(Artifact.id.desc())
        .limit(1)
    ).one_or_none()


def add_version_of_completed(session: Session, job: Job) -> None:
    """Where the job asked for a name. Nothing here keeps it from completing."""
    name = job.spec.get("adapter_name")
    if not isinstance(name, str):
        return
    if artifact_of(session, job.id) is None:
        said = f"not registered as {name}: it left no adapter"
        add_event(session, job.id, "adapter", said, level="warn")
        return
    add_version(session, job, name, job.user_name)


def add_version(session: Session, job: Job, name: str, who: str) -> Adapter:
    """Make a locked job's adapter the next version of `name`; one that it is already is returned.

    Raises StateError for a job that has not completed or has left no adapter.
    """
    artifact = artifact_of(session, job.id)
    completed = job.state == JobState.COMPLETED and job.purpose == Purpose.TUNE
    if artifact is None or not completed:
        why = "has no adapter any more" if completed else f"is {job.state} ({job.purpose})"
        raise StateError(
            f"job {job.id} {why}: only what a completed job has trained gets a version",
            remedy="`celora job` shows where it stands",
        )
    name_id = session.scalars(_NEXT_NAME, {"tenant_id": job.tenant_id, "name": name}).one()
    known = session.scalars(
        select(Adapter).where(
            Adapter.name_id == name_id, Adapter.job_id == job.id, Adapter.deleted_at.is_(None)
        )
    ).one_or_none()
    if known is not None:
        return known
    values = {
        "name_id": name_id,
        "job_id": job.id,
        "artifact_id": artifact.id,
        "kind": artifact.kind,
        "url": artifact.url,
        "size_bytes": artifact.size_bytes,
        "digest": artifact.digest,
        "data_digest": job.data_digest,
        "base_model": job.base_model,
        "base_revision": job.base_revision,
        "method": job.method,
        "rank": None if job.method == "full" else job.spec.get("rank"),
        "seed": job.spec.get("seed", 0),
        "spec": job.spec,
        "code_versions": (job.result or {}).get("versions", {}),
        "registered_by": who,
    }
    number = session.scalars(_COUNT, {"name_id": name_id}).one()
    made = Adapter(version=number, **values)
    session.add(made)
    add_event(
        session,
        job.id,
        "adapter",
        f"registered as {name}/{number}",
        data={"name": name, "version": number},
    )
    return made


def give_up_versions(session: Session, job_id: str, who: str) -> None:
    """Delete the versions that a job's adapter is, as its files are to go.

    Raises StateError while an alias holds one.
    """
    these = (Adapter.job_id == job_id, Adapter.deleted_at.is_(None))
    names = select(Adapter.name_id).where(*these)
    session.execute(
        select(AdapterName.id)
        .where(AdapterName.id.in_(names))
        .order_by(AdapterName.id)
        .with_for_update(key_share=True)
    )
    held = session.execute(
        select(AdapterName.name, AdapterAlias.alias)
        .join(AdapterAlias, AdapterAlias.name_id == AdapterName.id)
        .join(Adapter, Adapter.id == AdapterAlias.adapter_id)
        .where(*these)
    ).first()
    if held is not None:
        raise StateError(
            f"this is {held.name}@{held.alias}: a version that an alias holds stays",
            remedy="give the alias to another version first",
        )
    session.execute(
        update(Adapter)
        .where(*these)
        .values(deleted_at=func.clock_timestamp(), deleted_by=who)
        .execution_options(synchronize_session=False)
    )


# The name's row is made, or locked.
_NEXT_NAME = text("""
    INSERT INTO adapter_names (tenant_id, name, versions) VALUES (:tenant_id, :name, 0)
    ON CONFLICT (tenant_id, name) DO UPDATE SET name = excluded.name
    RETURNING id
""")

_COUNT = text("""
    UPDATE adapter_names SET versions = versions + 1 WHERE id = :name_id RETURNING versions
""")

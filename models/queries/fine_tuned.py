"""Fine-tuned models: finished jobs with an adapter (method full: a model) that still stands."""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.errors import StateError
from models.queries.adapter_versions import give_up_versions
from models.queries.retention import Candidate, mark_artifacts, needed_artifacts
from models.states import JobState, Purpose
from models.tables import Job

_LISTED = 10_000


def fine_tuned(session: Session, tenant_id: int) -> list[Job]:
    """The newest first."""
    return list(
        session.scalars(
            select(Job)
            .where(
                Job.tenant_id == tenant_id,
                Job.state == JobState.COMPLETED,
                Job.purpose == Purpose.TUNE,
                Job.adapter_url.is_not(None),
            )
            .order_by(Job.created_at.desc(), Job.id.desc())
            .limit(_LISTED)
        )
    )


def jobs_like(session: Session, tenant_id: int, job_id_prefix: str) -> list[Job]:
    """Those of the tenant whose ids begin so: one, but for a rare chance."""
    # Ids are ordered bytewise, and "~" comes after every letter: a range of the primary key.
    return list(
        session.scalars(
            select(Job).where(
                Job.id >= job_id_prefix, Job.id < job_id_prefix + "~", Job.tenant_id == tenant_id
            )
        )
    )


def forget_model(session: Session, job: Job, who: str) -> list[str]:
    """Mark a finished job's adapter or model deleted; returns URLs whose files go after the commit.

    Its versions under a name go with it. Raises StateError while something needs it; a failed job
    does not, which says that it is gone when it is run again.
    """
    give_up_versions(session, job.id, who)
    standing = session.execute(_STANDING, {"job_id": job.id}).all()
    if any(one.needed for one in standing):
        raise StateError(
            "something needs this model: a job that begins with it, an export or a chat",
            remedy="end that job first",
        )
    now = session.scalars(text("SELECT clock_timestamp()")).one()
    found = [Candidate(one.id, job.id, now) for one in standing]
    gone = mark_artifacts(session, found, on_request=True)
    if len(gone) < len(standing):
        raise StateError("the job is just being changed by somebody else", remedy="try again")
    session.expire(job)
    return [one.url for one in gone]


_STANDING = text(f"""
    SELECT id, id IN ({needed_artifacts(by_failed=False)}) AS needed FROM artifacts
    WHERE job_id = :job_id AND kind IN ('adapter', 'model') AND deleted_at IS NULL
""")  # noqa: S608 (constants)

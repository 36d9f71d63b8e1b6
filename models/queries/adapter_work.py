"""Exports and chats: jobs of another purpose, which work on what a job has trained."""

from __future__ import annotations

from typing import Any, get_args

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from models.adapter_work import ChatWork, ExportWork, Format, layout_of
from models.errors import InputError
from models.queries.adapters import Resolved
from models.queries.history import add_event
from models.queries.jobs import get_job, new_job_id
from models.queries.lanes import lane_of
from models.queries.products import register_artifact
from models.states import JobState, Purpose
from models.tables import Chat, Job
from models.turns import head_start

# What belongs to the training alone.
_NOT_TAKEN_OVER: dict[str, Any] = {
    "name": None,
    "adapter_name": None,
    "evaluate": False,
    "priority": 0,
    "urgent": False,
    "preemptible": False,
    "after": None,
    "start_from_adapter": False,
    "track": (),
    "notify": (),
}


def insert_export(session: Session, found: Resolved, form: Format, *, user: str) -> Job:
    """Put an export on record: it waits for a GPU. Raises InputError."""
    if form not in get_args(Format):
        raise InputError(
            f"{form!r} is no format of an export",
            where="format",
            remedy=f"use {', '.join(get_args(Format))}",
        )
    if form == "adapter" and found.kind == "model":
        raise InputError(
            f"{found.reference} was trained with method full: it is a whole model, and has no"
            " adapter",
            where="format",
            remedy="export it as merged or gguf-ready",
        )
    work = ExportWork(
        reference=found.reference,
        url=found.url,
        kind="model" if found.kind == "model" else "adapter",
        digest=found.digest,
        format=form,
    )
    return _insert(
        session, found, Purpose.EXPORT, work.model_dump(), user=user, what=f"export as {form}"
    )


def insert_chat(
    session: Session, found: Resolved, *, user: str, max_new_tokens: int, temperature: float
) -> Job:
    """Put a chat on record: it waits for a GPU, while somebody sits at it."""
    work = ChatWork(
        reference=found.reference,
        url=found.url,
        kind="model" if found.kind == "model" else "adapter",
        digest=found.digest,
        layout=layout_of((get_job(session, found.job_id).verdict or {}).get("shape")),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    job = _insert(session, found, Purpose.CHAT, work.model_dump(), user=user, what="chat")
    session.execute(insert(Chat).values(job_id=job.id))
    return job


def register_export(
    session: Session,
    job_id: str,
    fence: int,
    *,
    url: str,
    size_bytes: int,
    digest: str,
    report: dict[str, Any],
) -> None:
    """Register what was written and compared, and tell it at the job that trained it as well.

    Raises StaleFenceError.
    """
    register_artifact(
        session, job_id, fence, kind="export", url=url, size_bytes=size_bytes, digest=digest
    )
    said = f"exported as {report['format']}, loaded again and compared: {report['said']}"
    add_event(session, job_id, "exported", said, data=report)
    source = session.scalar(select(Job.source_job).where(Job.id == job_id))
    if source is not None:
        add_event(session, source, "exported", f"{said} (job {job_id})")


def _insert(
    session: Session,
    found: Resolved,
    purpose: Purpose,
    work: dict[str, Any],
    *,
    user: str,
    what: str,
) -> Job:
    """It goes straight to the queue: there is no data to prepare. It is the tenant's who owns the
    adapter, and asks of a GPU what the training asked."""
    source = get_job(session, found.job_id)
    spec = found.spec.model_copy(update=_NOT_TAKEN_OVER)
    job = session.scalars(
        insert(Job)
        .values(
            id=new_job_id(),
            tenant_id=source.tenant_id,
            user_name=user,
            purpose=purpose,
            source_job=source.id,
            work=work,
            spec=spec.model_dump(mode="json"),
            base_model=found.base_model,
            base_revision=found.base_revision,
            method=found.method,
            priority=0,
            # Held-out rows to compare on, as long as they are still there.
            prepared_url=source.prepared_url,
            data_digest=source.data_digest,
            lane_id=lane_of(session, source.tenant_id, user, spec, purpose),
            turn_at=func.now() - head_start(0),
            state=JobState.QUEUED,
            stage=purpose.first_stage,
        )
        .returning(Job)
    ).one()
    set_committed_value(job, "tenant", source.tenant)
    add_event(
        session, job.id, "submitted", f"{what} of {found.reference}, asked by {user}", wake=True
    )
    return job

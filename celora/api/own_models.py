"""Whose a fine-tuned model is."""

from __future__ import annotations

from sqlalchemy.orm import Session

from celora.api.caller import Caller, no_such
from celora.api.model_names import model_name, parse_name
from models.queries.fine_tuned import jobs_like
from models.states import JobState, Purpose
from models.tables import Job


def own_model(session: Session, caller: Caller, name: str) -> Job:
    """The finished job that a model's or checkpoint's name means. Raises NotFoundError."""
    named = parse_name(name)
    for job in jobs_like(session, caller.tenant_id, named.job_id_prefix) if named else ():
        stands = job.state == JobState.COMPLETED and job.adapter_url is not None
        if named and stands and job.purpose == Purpose.TUNE and model_name(job) == named.model:
            return job
    raise no_such("model", name)

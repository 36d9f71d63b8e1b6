"""The result file of a finished job: a CSV of its steps, made when somebody asks for it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict

from sqlalchemy.orm import Session

from celora.api.caller import Caller, no_such, require_own
from models.errors import NotFoundError
from models.queries import history
from models.queries.jobs import ID_PREFIX, get_job
from models.states import JobState, Purpose, Stage
from models.tables import Job

_START = "file-result-"
# OpenAI's columns, and what each is called here; ours follow.
_COLUMNS = {
    "train_loss": "train_loss",
    "train_accuracy": "token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_token_accuracy",
}


def result_file_id(job_id: str) -> str:
    return _START + job_id.removeprefix(ID_PREFIX)


def job_of_result(file_id: str) -> str | None:
    """The job whose result file an id names; None for other files."""
    return ID_PREFIX + file_id.removeprefix(_START) if file_id.startswith(_START) else None


def own_finished(session: Session, caller: Caller, job_id: str) -> Job:
    """Raises NotFoundError: no such job of the tenant, or it has no result."""
    try:
        job = get_job(session, job_id.replace("\0", "?"))
    except NotFoundError:
        raise no_such("file", result_file_id(job_id)) from None
    require_own(caller, job.tenant_id, "file", result_file_id(job_id))
    if job.state != JobState.COMPLETED or job.purpose != Purpose.TUNE:
        raise no_such("file", result_file_id(job_id))
    return job


def result_csv(session: Session, job: Job) -> bytes:
    """One row a step; a value that was not recorded in a step is empty."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    names: set[str] = set()
    for stage, name, step, value in history.metrics_of(session, job.id):
        if stage == Stage.TRAIN:
            steps[step][name] = value
            names.add(name)
    others = sorted(names - set(_COLUMNS.values()))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", *_COLUMNS, *others])
    for step in sorted(steps):
        row = steps[step]
        writer.writerow([step, *(row.get(name, "") for name in (*_COLUMNS.values(), *others))])
    return out.getvalue().encode()

"""`celora.preprocess`: turn a job's data into tokens, on a CPU worker."""

from __future__ import annotations

from celery.exceptions import Ignore

from tasks.app import app
from tasks.children import worker_session
from tasks.names import PREPROCESS
from tasks.preparation import prepare_job


@app.task(name=PREPROCESS)  # type: ignore[untyped-decorator]  # Celery ships no types
def preprocess(job_id: str, fence: int) -> None:
    if not prepare_job(worker_session(), job_id, fence):
        raise Ignore

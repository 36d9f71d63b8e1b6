"""`celora.preprocess`: turn a job's data into tokens, on a CPU worker."""

from __future__ import annotations

from tasks.app import app
from tasks.children import worker_session
from tasks.names import PREPROCESS
from tasks.preparation import prepare_job
from tasks.stage_task import StageTask, answer


@app.task(name=PREPROCESS, base=StageTask)  # type: ignore[untyped-decorator]  # Celery ships no types
def preprocess(job_id: str, fence: int) -> str:
    return answer(prepare_job(worker_session(), job_id, fence))

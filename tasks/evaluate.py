"""`celora.evaluate`: the tail of a training chain, in the worker that trained."""

from __future__ import annotations

from gpu_worker.supervise import run_stage
from models.states import Stage
from tasks.app import app
from tasks.children import gpu_session
from tasks.names import EVALUATE
from tasks.stage_task import StageTask, answer


@app.task(name=EVALUATE, base=StageTask)  # type: ignore[untyped-decorator]  # Celery ships no types
def evaluate(job_id: str, fence: int) -> str:
    return answer(run_stage(gpu_session(), job_id, fence, Stage.EVALUATE))

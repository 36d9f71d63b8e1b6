"""`celora.train`: runs on the queue of one GPU, in that GPU's worker."""

from __future__ import annotations

from gpu_worker.supervise import run_stage
from models.states import Stage
from tasks.app import app
from tasks.children import gpu_session
from tasks.names import TRAIN
from tasks.stage_task import StageTask, answer


@app.task(name=TRAIN, base=StageTask)  # type: ignore[untyped-decorator]  # Celery ships no types
def train(job_id: str, fence: int) -> str:
    return answer(run_stage(gpu_session(), job_id, fence, Stage.TRAIN))

"""`celora.generate`: a chat with what a job has trained, in one GPU's worker."""

from __future__ import annotations

from gpu_worker.supervise import run_stage
from models.states import Stage
from tasks.app import app
from tasks.children import gpu_session
from tasks.names import GENERATE
from tasks.stage_task import StageTask, answer


@app.task(name=GENERATE, base=StageTask)  # type: ignore[untyped-decorator]  # Celery ships no types
def generate(job_id: str, fence: int) -> str:
    return answer(run_stage(gpu_session(), job_id, fence, Stage.GENERATE))

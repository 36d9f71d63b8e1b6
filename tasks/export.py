"""`celora.export`: writes what a job has trained as others load it, in one GPU's worker."""

from __future__ import annotations

from gpu_worker.supervise import run_stage
from models.states import Stage
from tasks.app import app
from tasks.children import gpu_session
from tasks.names import EXPORT
from tasks.stage_task import StageTask, answer


@app.task(name=EXPORT, base=StageTask)  # type: ignore[untyped-decorator]  # Celery ships no types
def export(job_id: str, fence: int) -> str:
    return answer(run_stage(gpu_session(), job_id, fence, Stage.EXPORT))

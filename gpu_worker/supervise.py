"""One stage of one attempt, from the claim to the row that says how it ended.

    claim → fetch the inputs → the trainer runs → register what it made → end the attempt

stage_run.py has what comes after the claim, chat_run.py what is particular to a chat.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from gpu_worker import told
from gpu_worker.chat_run import ChatRun
from gpu_worker.gpu_session import GpuSession, TrainerStuckError
from gpu_worker.stage_run import StageRun
from gpu_worker.told import Told
from models.errors import UnavailableError
from models.states import Stage

_log = logging.getLogger(__name__)


def run_stage(session: GpuSession, job_id: str, fence: int, stage: Stage) -> Told:
    """Run one stage. True when it is done: its successor may run, where there is one.

    False when the ticket was stale, or the stage did not finish: its successor must not run.
    """
    try:
        claim = session.claim(job_id, fence, stage)
    except UnavailableError as error:
        _log.warning("job %s: not claimed: %s", job_id, error.what)
        return told.dropped(f"not claimed: {error.what}")
    if claim is None or session.lease is None:
        return told.dropped("a ticket that is late or repeated, or of a job that was stopped")
    try:
        run = ChatRun if stage is Stage.GENERATE else StageRun
        return run(session, claim, session.lease).run()
    except Exception:  # noqa: BLE001 (not even the end could be written)
        # Without a holder the lease must not be kept alive.
        _log.exception("job %s fence %s", job_id, fence)
        with suppress(TrainerStuckError):
            session.end_trainer()
        session.release()
        return told.dropped("the worker met an error of its own; its log tells it")

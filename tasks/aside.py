"""`python -m tasks.aside`: what a worker's main process has to write, written by another process.

The main process forks the pool. A thread of it that is in the middle of an import, or holds a lock
of a library, would leave both half done in the child (tried: the new child met a half-imported
psycopg). So the main process never speaks to the database.
"""

from __future__ import annotations

import logging
import sys
import time

from gpu_worker.session import count
from models.errors import CeloraError, UnavailableError
from models.queries import attempts, jobs
from models.session import transaction
from models.states import Outcome, Stage, StopReason

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


def cancel(job_id: str, fence: int, stage: Stage) -> None:
    """Write the cancel of a job whose task was terminated, however long the database is away.

    An attempt on a device ends when the device's new child has made sure that no trainer lives.
    """
    while True:
        try:
            with transaction() as session:
                jobs.request_stop(session, job_id, StopReason.CANCEL)
                if stage is Stage.PREPROCESS:
                    attempts.end_attempt(
                        session, job_id, fence, Outcome.CANCELLED, reason="terminated"
                    )
        except UnavailableError as error:
            _log.warning("the cancel of job %s waits: %s", job_id, error.what)
            time.sleep(_RETRY_SECONDS)
        except CeloraError as error:
            _log.warning("the cancel of job %s was not needed: %s", job_id, error.what)
            return
        else:
            _log.warning("job %s: cancelled, as its task was terminated", job_id)
            return


def main(arguments: list[str]) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    match arguments:
        case ["cancel", job_id, fence, stage]:
            cancel(job_id, int(fence), Stage(stage))
        case ["count", counter]:
            count(counter)
        case _:
            sys.exit(f"unknown: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`celora.submit`: a job from an application that knows only the broker."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Task
from celery.exceptions import Reject

from models.errors import InputError, SpecError, UnavailableError
from models.queries import jobs
from models.session import transaction
from models.settings import settings
from models.spec import parse_spec
from tasks.app import app
from tasks.names import SUBMIT

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 300.0  # well below a broker's delivery timeout
_RETRY_SECONDS = 1.0


@app.task(  # type: ignore[untyped-decorator]  # Celery ships no types
    name=SUBMIT,
    bind=True,
    # The one message that is a promise: it is acknowledged when the row is committed, and given
    # back when the worker dies before. The task's id keeps a redelivered one from making a second
    # job, and finds the job where there is no result backend.
    acks_late=True,
    reject_on_worker_lost=True,
    ignore_result=False,
    throws=(ValueError,),  # the caller's mistake: no traceback in our log
)
def submit(
    self: Task, spec: dict[str, Any], tenant: str = "default", user: str | None = None
) -> str:
    """Insert a job and return its id. A wrong spec fails the task, with the field in its message.

    A database that is away is waited for; then the message goes back to its queue. Raises
    ValueError, which the caller's side can name without our package.
    """
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _insert(spec, tenant=tenant, user=user or tenant, key=str(self.request.id))
        except InputError as error:
            raise ValueError(str(error)) from None
        except UnavailableError as error:
            _log.warning("a submitted job waits: %s", error.what)
            if time.monotonic() > patience:
                raise Reject(error, requeue=True) from error
            time.sleep(_RETRY_SECONDS)


def _insert(spec: dict[str, Any], *, tenant: str, user: str, key: str) -> str:
    wanted = parse_spec(spec)
    if wanted.scripted and not settings().allow_scripted:
        raise SpecError("scripted jobs are not allowed here", where="base_model")
    with transaction() as session:
        return jobs.insert_job(session, wanted, tenant=tenant, user=user, idempotency_key=key).id

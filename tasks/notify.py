"""`celora.notify`: try a notification now, from an application that knows only the broker.

The dispatcher delivers (docs/decisions): a receiver that does not answer must not hold a CPU
worker, which has data to prepare. This puts a message forward: one that waits for its next try, or
anew one that was given up.
"""

from __future__ import annotations

import logging

from models.errors import CeloraError
from models.queries import deliveries
from models.session import transaction
from tasks.app import app
from tasks.names import NOTIFY

_log = logging.getLogger(__name__)


@app.task(name=NOTIFY)  # type: ignore[untyped-decorator]  # Celery ships no types
def notify(delivery_id: int) -> None:
    try:
        with transaction() as session:
            deliveries.send_now(session, delivery_id)
    except CeloraError as error:
        _log.warning("notification %s is not put forward: %s", delivery_id, error.what)

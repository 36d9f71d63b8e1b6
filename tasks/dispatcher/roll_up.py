"""Counting ahead: use, waits and costs by day, for what people ask of many jobs at once.

In a thread of its own, with transactions of its own: placing never waits for it.
"""

from __future__ import annotations

import logging
import threading

from models.errors import CeloraError
from models.queries import notices, rollups
from models.session import transaction
from models.settings import settings

log = logging.getLogger(__name__)


def run(stop: threading.Event) -> None:
    """Count at once and every CELORA_ROLL_UP_SECONDS, until `stop`."""
    pause = 0.0
    while not stop.wait(pause):
        pause = settings().roll_up_seconds
        try:
            pass_once()
        except CeloraError as error:
            log.debug("nothing is counted: %s", error)  # the loop has said that Postgres is away
        except Exception:
            log.exception("nothing is counted; it is tried again")


def pass_once() -> None:
    """Count the last two days anew; nothing when another dispatcher is at it. Then tell whom it
    concerns of what has crept up: waits and budgets."""
    with transaction() as session:
        rollups.set_costs(session)
    with transaction() as session:
        rollups.count_days(session)
    with transaction() as session:
        notices.tell_overdue(session)
    with transaction() as session:
        notices.tell_budgets(session)

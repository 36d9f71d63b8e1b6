"""Forecasting: who is expected to start when, on record every few seconds for people to read.

In a thread of its own, with transactions of its own: placing never waits for it.
"""

from __future__ import annotations

import logging
import threading

from models.errors import CeloraError
from models.queries import forecasts
from models.session import transaction

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
_AFTER_A_FAULT_SECONDS = 15.0


def run(stop: threading.Event) -> None:
    """Forecast until `stop`."""
    pause = 0.0
    while not stop.wait(pause):
        pause = EVERY_SECONDS
        try:
            pass_once()
        except CeloraError as error:
            pause = _AFTER_A_FAULT_SECONDS  # the loop has said already that Postgres is away
            log.debug("no forecast: %s", error)
        except Exception:
            pause = _AFTER_A_FAULT_SECONDS
            log.exception("no forecast; it is tried again")


def pass_once() -> int:
    """Make the forecasts anew; 0 when another dispatcher has just made them."""
    with transaction() as session:
        made = forecasts.make(session, younger_than=EVERY_SECONDS / 2)
    if made is None:
        return 0
    with transaction() as session:
        return forecasts.write(session, made)

"""The dispatcher's loop: wake on a notification or every few seconds, place, repair."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from models.errors import CeloraError, UnavailableError
from models.queries.history import WAKE_CHANNEL
from models.queries.notify import Listener, listen
from models.settings import settings
from tasks.dispatcher import deliver, forecast, place, reconcile, relay, roll_up, sweep
from tasks.dispatcher.outage import Outage

log = logging.getLogger(__name__)

# How long a stop may go unnoticed while nothing happens.
STOP_CHECK_SECONDS = 0.25
# Between two passes: what comes in a flood of wake-ups is placed together.
BREATH_SECONDS = 0.02


def run(stop: threading.Event, publish: relay.Publish | None = None) -> None:
    """Place, relay and repair until `stop` is set; outlives Postgres and the broker.

    `publish` sends one ticket; the default sends it to the broker of the settings.
    """
    tickets = threading.Event()
    publisher = relay.Publisher()  # connects when the first ticket is sent
    sender = threading.Thread(
        target=relay.run,
        args=(stop, tickets, publish or publisher),
        name="relay",
        daemon=True,  # it may sit in a publish when the process is to leave: tickets are kept
    )
    sender.start()
    sweeper = threading.Thread(target=sweep.run, args=(stop,), name="sweep", daemon=True)
    sweeper.start()  # never waited for: it may sit in a store, and may do all of it again
    forecaster = threading.Thread(target=forecast.run, args=(stop,), name="forecast", daemon=True)
    forecaster.start()
    counter = threading.Thread(target=roll_up.run, args=(stop,), name="roll-up", daemon=True)
    counter.start()
    deliverer = threading.Thread(target=deliver.run, args=(stop,), name="deliver", daemon=True)
    deliverer.start()  # it may sit in a receiver: what it does not finish is sent again
    outage = Outage("Postgres does not answer", "jobs that run go on; nothing is placed")
    log.info("dispatching")
    while not stop.is_set():
        try:
            with listen(WAKE_CHANNEL) as wakes:
                outage.over()
                _serve(wakes, stop, tickets)
        except UnavailableError as error:
            stop.wait(outage.failed(error))
    tickets.set()
    for thread in (forecaster, counter, deliverer):
        thread.join(relay.CONFIRM_SECONDS)
    sender.join(relay.CONFIRM_SECONDS)
    if not sender.is_alive():
        publisher.close()
    log.info("stopped")


def _serve(wakes: Listener, stop: threading.Event, tickets: threading.Event) -> None:
    """Work while the listening connection lives. Raises UnavailableError when Postgres is gone."""
    repair_at = 0.0  # at once: much may have been lost while nobody looked
    while not stop.is_set():
        if time.monotonic() >= repair_at:
            _work(reconcile.pass_once, tickets)
            repair_at = time.monotonic() + settings().poll_seconds
        _work(place.release_jobs, tickets)
        _work(place.place_jobs, tickets)  # early: a GPU that waits costs most
        _work(place.preempt_jobs, tickets)
        _work(place.place_preparation, tickets)
        stop.wait(BREATH_SECONDS)
        while not stop.is_set() and (left := repair_at - time.monotonic()) > 0:
            if wakes.wait(min(left, STOP_CHECK_SECONDS)):
                break


def _work(step: Callable[[], int], tickets: threading.Event) -> None:
    """One pass; what it did may have left tickets. A fault in one step does not stop the others."""
    try:
        if step():
            tickets.set()
    except UnavailableError:
        raise
    except CeloraError as error:
        log.error("a pass failed and is tried again: %s", error)  # noqa: TRY400 (it explains itself)
    except Exception:
        log.exception("a pass failed and is tried again")

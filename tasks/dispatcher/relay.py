"""Publishing: tickets go from the outbox to the broker, outside any transaction.

A ticket counts as sent when the broker has confirmed it. A crash in between publishes it twice,
which the claim tells apart.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kombu import Connection

from models.queries import outbox
from models.session import transaction
from models.settings import settings
from models.states import Stage
from models.tables import Ticket
from tasks import pipeline, shown
from tasks.broker import broker_settings
from tasks.dispatcher.outage import Outage

log = logging.getLogger(__name__)

Publish = Callable[[Ticket], None]

BATCH = 100
# One publish is over within this: connecting, and waiting for the broker's confirmation.
CONNECT_SECONDS = 4.0
CONFIRM_SECONDS = 5.0


def relay_once(publish: Publish) -> int:
    """Publish what waits, until one is refused; returns how many were sent.

    Raises what `publish` raised. The ticket that failed stays, behind those that were tried less
    often: one that can never be sent does not hold up the others.
    """
    with transaction() as session:
        waiting = outbox.unsent(session, BATCH)
    sent: list[int] = []
    try:
        for ticket in waiting:
            try:
                publish(ticket)
            except Exception as error:
                with transaction() as session:
                    outbox.mark_error(session, ticket.id, repr(error))
                raise
            sent.append(ticket.id)
    finally:
        if sent:
            with transaction() as session:
                outbox.mark_sent(session, sent)
    return len(sent)


def run(stop: threading.Event, wake: threading.Event, publish: Publish) -> None:
    """Relay until `stop`: at once when `wake` is set, and every poll besides.

    In a thread of its own, so that a broker that is down or silent holds up no placing.
    """
    outage = Outage("the broker does not take tickets", "they wait in Postgres")
    while not stop.is_set():
        wake.clear()
        try:
            sent = relay_once(publish)
        except Exception as error:
            log.debug("relay failed", exc_info=error)
            stop.wait(outage.failed(error))
            continue
        outage.over()
        if sent < BATCH:
            wake.wait(settings().poll_seconds)


class Publisher:
    """Publishes over a connection of its own; a silent broker holds it up for seconds at most."""

    def __init__(self) -> None:
        self._connection: Any = None

    def __call__(self, ticket: Ticket) -> None:
        """Send a ticket's chain and wait for the confirmation. Raises what kombu raises."""
        reused = self._connection is not None
        try:
            self._send(ticket)
        except Exception:
            self.close()
            if not reused:
                raise
            # It broke while it was idle, most likely; a fresh one tells.
            try:
                self._send(ticket)
            except Exception:
                self.close()
                raise

    def _send(self, ticket: Ticket) -> None:
        if self._connection is None:
            self._connection = _connect()
        chain = pipeline.ticket(
            ticket.job_id,
            ticket.fence,
            Stage(ticket.stage),
            ticket.queue,
            ticket.evaluate,
            shown=None if ticket.job is None else shown.of(ticket.job),
        )
        chain.apply_async(
            connection=self._connection,
            retry=False,
            timeout=CONFIRM_SECONDS,
            confirm_timeout=CONFIRM_SECONDS,
        )

    def close(self) -> None:
        """Drop the connection without the good-bye, whose answer may never come."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        transport = connection._connection  # noqa: SLF001 (kombu has no way to close abruptly)
        if hasattr(transport, "collect"):  # RabbitMQ's; a folder's has no socket
            transport.collect()
        connection.release()


def _connect() -> Any:
    broker = broker_settings(settings().resolved_broker_url)
    connection = Connection(
        broker["broker_url"],
        connect_timeout=CONNECT_SECONDS,
        ssl=broker.get("broker_use_ssl", False),
        transport_options=broker["broker_transport_options"]
        | {
            "read_timeout": CONFIRM_SECONDS,
            "write_timeout": CONFIRM_SECONDS,
            "max_retries": 0,  # kombu's own reconnecting would go on for ever, inside the publish
        },
    )
    try:
        connection.connect()
    except Exception:
        connection.release()
        raise
    return connection

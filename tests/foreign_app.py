"""Somebody else's Celery application, which knows only the broker."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery

_numbers = itertools.count(1)


@contextmanager
def foreign_app(broker: str, *, backend: str | None = None) -> Iterator[Celery]:
    """Closed with all its connections: Celery's own `close` leaves them to the collector.

    kombu keeps one pool for all that connect alike, in which a closed one would stay: each
    application connects under a name of its own.
    """
    # Not the process's current application, which would live until the next one is made.
    client = Celery("somebody-elses", broker=broker, backend=backend, set_as_current=False)
    name = f"somebody-elses-{next(_numbers)}"
    client.conf.broker_transport_options = {"client_properties": {"connection_name": name}}
    try:
        yield client
    finally:
        if backend is not None:
            client.backend.result_consumer.stop()
        client.pool.force_close_all()
        client.close()

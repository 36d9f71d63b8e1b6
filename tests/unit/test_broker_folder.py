"""The folder as a broker, as Celery and Flower open it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kombu import Connection

from tasks.broker import broker_settings


def test_no_connection_to_it_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = broker_settings(f"filesystem://{tmp_path}/broker")
    options = found["broker_transport_options"]
    with Connection(found["broker_url"], transport_options=options) as connection:
        connection.info()
    assert caplog.messages == []

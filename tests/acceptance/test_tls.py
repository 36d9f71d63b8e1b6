"""Broker and database over TLS: encrypted, and only with a certificate that can be trusted.

Servers of the tests' own with certificates made for the run (tests/tls_servers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from models.errors import SetupError
from tests import tls_servers
from tests.conftest import unavailable
from tests.environment import variables
from tests.scripted_jobs import FAST, in_state, submit, words
from tests.stack import Stack
from tests.tls_servers import Certificates

pytestmark = [pytest.mark.broker, pytest.mark.slow]  # two servers of its own: half a minute


@pytest.fixture(scope="module")
def certificates(server_folder: Path) -> Certificates:
    names = ("localhost", "127.0.0.1")  # kombu makes the one the other
    return tls_servers.certificates(server_folder / "tls", *names)


@pytest.fixture(scope="module")
def tls_broker(certificates: Certificates, server_folder: Path) -> Iterator[str]:
    folder = server_folder / "tls-rabbitmq"
    try:
        with tls_servers.broker(folder, certificates, address="127.0.0.1", name="localhost") as url:
            yield url
    except SetupError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def tls_database(certificates: Certificates, server_folder: Path) -> Iterator[str]:
    folder = server_folder / "tls-postgres"
    try:
        with tls_servers.database(
            folder, certificates, address="127.0.0.1", name="localhost"
        ) as url:
            yield url
    except SetupError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def pool(
    tls_database: str,
    tls_broker: str,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tls")
    environment = {
        "CELORA_DATABASE_URL": tls_database,
        "CELORA_BROKER_URL": tls_broker,
        "CELORA_BROKER_CA": str(certificates.authority),
        "CELORA_HOME": str(folder / "home"),
        "CELORA_HOST": "tls-host",
        "CELORA_LOCK_FOLDER": str(folder / "locks"),
        "CELORA_ALLOW_SCRIPTED": "true",
    }
    stack = Stack(folder, environment | FAST)
    with variables(**environment):
        try:
            stack.start("dispatcher")
            stack.start("cpu-worker", "--concurrency", "1")
            stack.start("gpu-worker", "--devices", "cpu:1")
            stack.wait_until("the slot is free", lambda: words() == ["free"])
            yield stack
        finally:
            stack.close(seconds=0)


def test_a_job_runs_through_with_everything_encrypted(pool: Stack, tls_database: str) -> None:
    in_state(pool, submit("steps=5"), "completed")
    with connected(tls_database) as connection:
        plain = connection.execute(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE client_addr IS NOT NULL AND NOT ssl"
        ).fetchone()
    assert plain == (0,)
    told = pool.run("doctor", check=False).stdout
    assert "amqps://" in told


def test_a_server_that_cannot_be_trusted_gets_no_password(
    pool: Stack, tls_database: str, certificates: Certificates
) -> None:
    strange = tls_database.replace(str(certificates.authority), str(certificates.stranger))
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connected(strange)
    with variables(CELORA_BROKER_CA=str(certificates.stranger)):
        pool.environment["CELORA_BROKER_CA"] = str(certificates.stranger)
        told = pool.run("doctor", check=False).stdout
        pool.environment["CELORA_BROKER_CA"] = str(certificates.authority)
    assert "CERTIFICATE_VERIFY_FAILED" in told.replace("\n", " ")


def test_without_tls_nobody_gets_in(pool: Stack, tls_database: str) -> None:
    assert pool.running
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        connected(tls_database.partition("?")[0] + "?sslmode=disable")


def connected(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), connect_timeout=5)

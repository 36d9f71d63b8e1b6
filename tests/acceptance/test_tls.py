"""Broker and database over TLS: encrypted, and only with a certificate that can be trusted.

Servers of the tests' own with certificates made for the run. PostgreSQL from the wheel has no TLS
compiled in: Debian's is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import trustme

import migrations
from celora.local.binaries import Runner, runner
from models.errors import SetupError
from tests import apt, own_rabbitmq, postgres_server
from tests.conftest import unavailable
from tests.environment import variables
from tests.postgres_server import free_port
from tests.scripted_jobs import FAST, in_state, submit, words
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.slow]  # two servers of its own: half a minute


@dataclass(frozen=True, slots=True)
class Certificates:
    authority: Path
    stranger: Path  # an authority that signed nothing here
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def certificates(server_folder: Path) -> Certificates:
    folder = server_folder / "tls"
    folder.mkdir(mode=0o755)
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")  # kombu makes the one the other
    made = Certificates(*(folder / name for name in ("ca.pem", "other.pem", "server.pem", "key")))
    authority.cert_pem.write_to_path(made.authority)
    trustme.CA().cert_pem.write_to_path(made.stranger)
    made.certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(made.key)
    made.key.chmod(0o600)
    user = runner().user
    if user is not None:
        shutil.chown(made.key, user)
    return made


@pytest.fixture(scope="module")
def tls_broker(certificates: Certificates, server_folder: Path) -> Iterator[str]:
    """URL of a broker that takes TLS alone."""
    folder = server_folder / "tls-rabbitmq"
    folder.mkdir()
    key = folder / "key.pem"  # one more copy: the database's user alone reads the other
    key.write_bytes(certificates.key.read_bytes())
    port = free_port()
    configuration = (
        f"listeners.ssl.local = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {certificates.authority}\n"
        f"ssl_options.certfile = {certificates.certificate}\n"
        f"ssl_options.keyfile = {key}\n"
        "ssl_options.verify = verify_none\n"
    )
    try:
        with own_rabbitmq.own_server(folder, configuration=configuration):
            yield f"amqps://guest:guest@localhost:{port}"
    except SetupError as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def tls_database(certificates: Certificates, server_folder: Path) -> Iterator[str]:
    """URL of a migrated database that lets nobody in without TLS."""
    folder = server_folder / "tls-postgres"
    folder.mkdir(mode=0o755)
    try:
        programs = Runner(_debian_programs(), runner().user)
    except SetupError as error:
        unavailable(str(error))
    settings = (
        f"-c ssl=on -c ssl_cert_file={certificates.certificate} -c ssl_key_file={certificates.key}"
    )
    with postgres_server.own_server(folder, programs=programs, settings=settings) as server:
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        with server.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        url = server.url.replace("127.0.0.1", "localhost")
        verified = f"{url}?sslmode=verify-full&sslrootcert={certificates.authority}"
        migrations.upgrade(verified)
        yield verified


def _debian_programs() -> Path:
    """The folder with initdb and pg_ctl of the newest version that is installed."""

    def installed() -> list[Path]:
        found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
        return sorted((path.parent for path in found), key=lambda folder: int(folder.parent.name))

    if not installed():
        apt.install("postgresql", remedy="install PostgreSQL's Debian package")
    if not installed():
        raise SetupError("apt did not install PostgreSQL", remedy="install its Debian package")
    return installed()[-1]


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

"""A broker and a database that take TLS alone, with certificates made for the run.

PostgreSQL from the wheel has no TLS compiled in: Debian's is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

import migrations
from celora.local.binaries import Runner, runner
from models.errors import SetupError
from tests import apt, own_rabbitmq, postgres_server
from tests.postgres_server import free_port


@dataclass(frozen=True, slots=True)
class Certificates:
    authority: Path
    stranger: Path  # an authority that signed nothing here
    certificate: Path
    key: Path


def certificates(folder: Path, *names: str) -> Certificates:
    """For a server that is reached by these names and addresses."""
    folder.mkdir(mode=0o755)
    authority = trustme.CA()
    server = authority.issue_cert(*names)
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


@contextmanager
def broker(folder: Path, made: Certificates, *, address: str, name: str) -> Iterator[str]:
    """URL of a broker that takes TLS alone on `address`. Raises SetupError."""
    folder.mkdir()
    key = folder / "key.pem"  # one more copy: the database's user alone reads the other
    key.write_bytes(made.key.read_bytes())
    port = free_port()
    configuration = (
        f"listeners.ssl.local = {address}:{port}\n"
        f"ssl_options.cacertfile = {made.authority}\n"
        f"ssl_options.certfile = {made.certificate}\n"
        f"ssl_options.keyfile = {key}\n"
        "ssl_options.verify = verify_none\n"
        "loopback_users = none\n"
    )
    with own_rabbitmq.own_server(folder, configuration=configuration):
        yield f"amqps://guest:guest@{name}:{port}"


@contextmanager
def database(folder: Path, made: Certificates, *, address: str, name: str) -> Iterator[str]:
    """URL of a migrated database that lets nobody in without TLS. Raises SetupError."""
    folder.mkdir(mode=0o755)
    programs = Runner(_debian_programs(), runner().user)
    settings = f"-c ssl=on -c ssl_cert_file={made.certificate} -c ssl_key_file={made.key}"
    if address != "127.0.0.1":
        settings += f" -c listen_addresses=127.0.0.1,{address}"
    with postgres_server.own_server(folder, programs=programs, settings=settings) as server:
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text(
            "hostssl all all 127.0.0.1/32 scram-sha-256\n"
            f"hostssl all all {address}/24 scram-sha-256\n"
        )
        with server.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        url = server.url.replace("127.0.0.1", name)
        verified = f"{url}?sslmode=verify-full&sslrootcert={made.authority}"
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

"""An S3-compatible store of the test run's own: moto's server, as a process.

It keeps all in memory: what is stored there is gone when it ends. A proxy in front of it is how it
can be away.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

from gpu_worker import tether
from tests.environment import variables
from tests.postgres_server import free_port
from tests.waiting import until

BUCKET = "celora-artifacts"
_REQUEST = re.compile(r'"([A-Z]+ \S+) HTTP/1.1"')
KEYS = {"AWS_ACCESS_KEY_ID": "celora", "AWS_SECRET_ACCESS_KEY": "of-the-tests-alone"}


@dataclass(frozen=True, slots=True)
class S3Server:
    host: str
    port: int
    log: Path
    authority: Path | None = None  # whose certificate it has: https

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.authority else 'http'}://{self.host}:{self.port}"

    def environment(self, *, port: int | None = None) -> dict[str, str]:
        """What a process needs to reach it; `port` is that of a proxy in front."""
        trusted = {"AWS_CA_BUNDLE": str(self.authority)} if self.authority else {}
        return trusted | KEYS | {
            "AWS_ENDPOINT_URL": self.endpoint.replace(str(self.port), str(port or self.port)),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # no credentials are looked for in the network
        }  # fmt: skip

    def make_bucket(self, name: str = BUCKET) -> str:
        """Its URL."""
        self.put(name, b"")
        return f"s3://{name}"

    def put(self, path: str, content: bytes) -> None:
        """Write an object as another host does: past this process's client."""
        with self._connected() as connection:
            signed = {"Authorization": "AWS celora:unchecked"}
            connection.request("PUT", f"/{path}", body=content, headers=signed)
            assert connection.getresponse().status == http.client.OK

    def requests(self) -> list[str]:
        """What it was asked so far: `GET /bucket/key`."""
        return _REQUEST.findall(self.log.read_text(errors="replace"))

    def answers(self) -> bool:
        try:
            with self._connected() as connection:
                connection.request("GET", "/moto-api/")
                return connection.getresponse().status == http.client.OK
        except OSError:
            return False

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        connection: http.client.HTTPConnection
        if self.authority is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        else:
            trust = ssl.create_default_context(cafile=str(self.authority))
            connection = http.client.HTTPSConnection(
                self.host, self.port, timeout=10, context=trust
            )
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def reached(url: str, home: Path, **environment: str) -> Iterator[str]:
    """This process's artifacts lie there for the block: fsspec keeps its clients, whatever the
    environment they were made in."""
    client = fsspec.get_filesystem_class("s3")
    client.clear_instance_cache()
    with variables(CELORA_HOME=str(home), CELORA_ARTIFACTS=url, **environment):
        yield url
    client.clear_instance_cache()


@contextmanager
def own_server(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    certificate: tuple[Path, Path] | None = None,
    authority: Path | None = None,
) -> Iterator[S3Server]:
    """Start it and end it; `certificate`: its chain and its key, for https.

    With those it takes no other connection during a handshake.
    """
    log = folder / "s3.log"
    server = S3Server(host, free_port(), log, authority)
    command = tether.command("moto.server", "-H", host, "-p", str(server.port))
    if certificate is not None:
        command += ["-c", str(certificate[0]), "-k", str(certificate[1])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: server.answers() or process.poll() is not None)
        assert process.poll() is None, log.read_text(errors="replace")[-2_000:]
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)

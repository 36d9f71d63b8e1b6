"""Data from the web: no URL, name or redirect makes us connect to a private address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.errors import InputError
from tests.environment import variables
from training_data.locations import FileSet, HubName, locate

ROWS = b'{"text": "a"}\n'


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/rows.jsonl")  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.asked.append(self.headers["Host"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(ROWS)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(ROWS)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("0.0.0.0", 0), _Handler)  # noqa: S104 (two loopback addresses)
    made.daemon_threads = True
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def read(url: str) -> bytes:
    found = locate(url, splits=("train",), revision=None)
    assert isinstance(found, FileSet)
    with found.files[0].open() as file:
        return file.read()


def test_only_named_networks_are_private_and_reached(server: ThreadingHTTPServer) -> None:
    url = f"public+http://127.0.0.1:{server.server_port}/rows.jsonl"
    with pytest.raises(InputError, match="private address"):
        read(url)
    assert not server.asked  # type: ignore[attr-defined]
    with variables(CELORA_API_DATASET_NETWORKS="127.0.0.1/32"):
        assert read(url) == ROWS


def test_a_redirect_leads_nowhere_else(server: ThreadingHTTPServer) -> None:
    with variables(CELORA_API_DATASET_NETWORKS="127.0.0.1/32"), pytest.raises(InputError):
        read(f"public+http://127.0.0.1:{server.server_port}/away/rows.jsonl")
    assert not server.asked  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url",
    [
        "public+http://localhost/a.jsonl",
        "public+http://[::1]/a.jsonl",
        "public+http://[::ffff:127.0.0.1]/a.jsonl",
        "public+http://169.254.169.254/latest/meta-data",
        "public+http://10.0.0.8/a.jsonl",
        "public+http://2130706433/a.jsonl",
        "public+http://0x7f000001/a.jsonl",
        "public+http://0.0.0.0/a.jsonl",
        "public+file:///etc/passwd",
        "public+http://",
        "PUBLIC+HTTP://127.0.0.1/a.jsonl",
        "public+https://simplecache::file:///etc/passwd",
    ],
)
def test_what_is_not_for_everybody_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        locate(url, splits=("train",), revision=None)


def test_a_name_on_the_hub_is_never_a_path() -> None:
    assert locate("hub://tests/unit:main", splits=("train",), revision="v1") == HubName(
        "tests/unit", "main", "v1", ("train",)
    )

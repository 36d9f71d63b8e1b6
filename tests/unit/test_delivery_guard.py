"""The fence around a process that sends for others. It cannot be undone: each test has its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import json, os, pathlib, socket, subprocess, sys
from tasks.delivery.guard import guard
things = json.load(sys.stdin)
refused = guard(things["private_hosts"])
said = {}
for name, code in things["codes"].items():
    try:
        exec(code)
        said[name] = "done"
    except PermissionError:
        said[name] = "refused"
    except OSError:
        said[name] = "tried"
print(json.dumps({"said": said, "refused": refused}))
"""


def behind_the_fence(codes: dict[str, str], *, private_hosts: str = "") -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps({"codes": codes, "private_hosts": private_hosts}),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    said: dict[str, str] = json.loads(done.stdout)["said"]
    return said


def test_files_programs_and_private_addresses_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    connect = "socket.create_connection(({!r}, 9), 1).close()"
    said = behind_the_fence(
        {
            "file": f"open({str(tmp_path / 'secret')!r})",
            "path": f"open(pathlib.Path({str(tmp_path / 'secret')!r}))",
            "bytes": f"open({bytes(tmp_path / 'secret')!r})",
            "link": f"open({str(tmp_path / 'link')!r})",
            "climbing": f"open({sys.prefix + '/../../../../../../etc/passwd'!r})",
            "os.open": "os.open('/etc/passwd', os.O_RDONLY)",
            "program": "subprocess.run(['true'])",
            "shell": "os.system('true')",
            "loopback": connect.format("127.0.0.1"),
            "name": connect.format("localhost"),
            "wrapped": connect.format("::ffff:127.0.0.1"),
            "metadata": connect.format("169.254.169.254"),
            "unix": "socket.socket(socket.AF_UNIX).connect('/run/postgresql/.s.PGSQL.5432')",
            "datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        }
    )
    assert said == dict.fromkeys(said, "refused")


def test_what_the_setting_names_and_what_python_needs_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = behind_the_fence(
            {
                "module": "import wsgiref.handlers",
                "named": f"socket.create_connection(('127.0.0.1', {port}), 5).close()",
                "null": "open('/dev/null').close()",
                "other": "socket.create_connection(('127.0.0.2', 9), 1)",
            },
            private_hosts="127.0.0.1",
        )
    assert said == {"module": "done", "named": "done", "null": "done", "other": "refused"}


def test_a_mail_server_inside_is_not_reached() -> None:
    order = {
        "url": "mailto://user:password@127.0.0.1:9?to=a@example.com&from=b@example.com",
        "services": ["mailto"],
        "private_hosts": "",
        "seconds": 60,
        "title": "t",
        "body": "b",
        "type": "info",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tasks.delivery.apprise_child"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "private address" in json.loads(done.stdout)["cause"]
    assert done.stderr == ""

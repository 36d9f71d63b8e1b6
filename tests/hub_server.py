"""A model hub on loopback that speaks enough of the hub's HTTP API for its real client.

    with HubServer() as hub:
        hub.add("owner/model", folder)
        … HF_ENDPOINT=hub.url …

As on the real hub, safetensors are LFS files that are served from another host after a redirect,
a missing repository answers 401 to those without a token, and errors carry X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_API = re.compile(
    r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+)"
    r"(/(?P<below>.+))?|/(?P<check>auth-check))?"
)
_FILE = re.compile(r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class _Repository:
    tokens: set[str] | None  # None: open to all
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit → files
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag → commit

    def commit(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.revisions else None


class HubServer:
    """Repositories by name; `requests` lists what was asked for, as "METHOD path"."""

    def __init__(self) -> None:
        self.repositories: dict[str, _Repository] = {}
        self.requests: list[str] = []
        self.down = False  # True: every request is answered 503
        self.stall = threading.Event()  # set: of an LFS file half is sent, and then no more
        self._server = _Server(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn(self) -> str:
        """Where LFS files are: the same server under a name that counts as another host."""
        return f"http://localhost:{self._server.server_port}"

    def add(
        self, repo: str, folder: Path, *, revision: str = "main", token: str | None = None
    ) -> str:
        """Publish the folder's files under a branch; the commit. With `token` it is gated."""
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        content = hashlib.sha1(usedforsecurity=False)
        for name, data in files.items():
            content.update(f"{name}\0{len(data)}\0".encode() + data)
        tokens = None if token is None else {token}
        repository = self.repositories.setdefault(repo, _Repository(tokens))
        repository.revisions[content.hexdigest()] = files
        repository.refs[revision] = content.hexdigest()
        return content.hexdigest()

    def set_tokens(self, repo: str, *tokens: str) -> None:
        """Gate a repository: these open it, and no others."""
        self.repositories[repo].tokens = set(tokens)

    def downloads(self) -> list[str]:
        """Paths of the files whose content was sent."""
        return [r for r in self.requests if r.startswith("GET") and not r.startswith("GET /api/")]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed says no farewell
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/agent-harnesses":  # the client's own bookkeeping, once a day
            self._json({"standardEnvVars": [], "harnesses": {}})
            return
        self.server.hub.requests.append(f"{self.command} {path}")
        if self.server.hub.down:
            self._error(503, "", "The hub is down")
        elif path.startswith("/cdn/"):
            self._blob(path.removeprefix("/cdn/"))
        elif found := _API.fullmatch(path):
            self._api(found)
        elif found := _FILE.fullmatch(path):
            self._file(found)
        else:
            self._error(404, "", "Not Found")

    def _repository(self, found: re.Match[str]) -> tuple[_Repository, str] | None:
        """The repository and the commit, or None after an error was answered."""
        repository = self.server.hub.repositories.get(found["repo"])
        if repository is None:
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        revision = unquote(found["revision"] or "main")
        commit = repository.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _api(self, found: re.Match[str]) -> None:
        if (there := self._repository(found)) is None:
            return
        repository, commit = there
        files = repository.revisions[commit]
        if found["check"]:
            if not self._is_kept_out(repository):
                self._json({})
            return
        if found["what"] == "tree":
            self._tree(files, unquote(found["below"] or ""))
            return
        siblings = [{"rfilename": path} for path in files]
        info = {"id": found["repo"], "sha": commit, "siblings": siblings, "tags": []}
        self._json(info | {"private": False, "gated": repository.tokens is not None})

    def _tree(self, files: dict[str, bytes], below: str) -> None:
        """The files of a folder, as if it was asked for all levels; none is an error."""
        prefix = f"{below}/" if below else ""
        there = [_entry(path, data) for path, data in files.items() if path.startswith(prefix)]
        if there:
            self._json(there)
        else:
            self._error(404, "EntryNotFound", f"{below} does not exist")

    def _file(self, found: re.Match[str]) -> None:
        if (there := self._repository(found)) is None:
            return
        repository, commit = there
        if self._is_kept_out(repository):
            return
        path = unquote(found["path"])
        data = repository.revisions[commit].get(path)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(data)}"'}
        if not path.endswith(".safetensors"):
            self._send(200, data, headers)
            return
        oid = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data))}
        self._send(302, b"", headers | {"Location": f"{self.server.hub.cdn}/cdn/{oid}"})

    def _is_kept_out(self, repository: _Repository) -> bool:
        """True after an error was answered."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.tokens is None or token in repository.tokens:
            return False
        self._error(403, "GatedRepo", "Access to this model is restricted")
        return True

    def _blob(self, oid: str) -> None:
        assert "Authorization" not in self.headers, "a token was sent to a foreign host"
        for repository in self.server.hub.repositories.values():
            for files in repository.revisions.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == oid:
                        self._send(200, data, {"ETag": f'"{oid}"'})
                        return
        self._error(404, "", "Not Found")

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Code": code} if code else {}
        self._send(status, b"", told | {"X-Error-Message": message} | (headers or {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            stall = self.server.hub.stall
            half = len(body) // 2 if stall.is_set() and self.path.startswith("/cdn/") else len(body)
            self.wfile.write(body[:half])
            while half < len(body) and stall.is_set():
                time.sleep(0.01)  # the client is to be killed meanwhile
            self.wfile.write(body[half:])


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
    if path.endswith(".safetensors"):
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return entry


def _blob_id(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()

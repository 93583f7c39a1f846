"""A hub of one's own: the few requests that a download makes, over HTTP on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree)/([^/?]+))?(?:\?.*)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(?:\?.*)?")

Repositories = Mapping[tuple[str, str], tuple[str, Mapping[str, bytes]]]
"""The commit of main and the files, by (kind, name)."""


class HubServer:
    """Serves repositories inside the context; ``downloads`` are the files that were sent."""

    def __init__(self, repositories: Repositories) -> None:
        self.repositories, self.downloads = repositories, list[str]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a GET or HEAD."""
        if api := _API.fullmatch(path):
            return self._described(api[1].removesuffix("s"), api[2], api[3] or "", api[4] or "main")
        if file := _FILE.fullmatch(path):
            kind = "dataset" if file[1] else "model"
            return self._content(kind, file[2], file[3], file[4])
        return 404, b"", {}

    def _described(
        self, kind: str, name: str, what: str, revision: str
    ) -> tuple[int, bytes, dict[str, str]]:
        if (kind, name) not in self.repositories:
            return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
        commit, files = self.repositories[kind, name]
        if revision not in ("main", commit):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
            for path, content in files.items()
        ]
        described: Any = tree if what == "tree" else {"id": name, "sha": commit, "siblings": []}
        return 200, json.dumps(described).encode(), {"Content-Type": "application/json"}

    def _content(
        self, kind: str, name: str, revision: str, path: str
    ) -> tuple[int, bytes, dict[str, str]]:
        commit, files = self.repositories[kind, name]
        assert revision == commit
        content = files[path]
        return 200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send()

        def do_GET(self) -> None:
            body = self._send()
            self.wfile.write(body)
            if "/resolve/" in self.path:
                server.downloads.append(self.path.rpartition("/")[2])

        def _send(self) -> bytes:
            status, body, headers = server.reply(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    return Handler

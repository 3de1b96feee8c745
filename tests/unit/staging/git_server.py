"""A real web server on loopback: files with validators, and repositories through `git http-backend` behind a login."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["WebServer", "nobody", "web_server"]


class WebServer(ThreadingHTTPServer):
    """root: what is served. login: "user:password", "" for none. cut: bytes that each body lacks.

    moved: path -> where to. seen: each status. asked: each request's headers. etags: whether files have one, else only
    Last-Modified. during: called before each answer about a repository.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.login, self.cut = root, "", 0
        self.moved: dict[str, str] = {}
        self.seen: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.etags = True
        self.during: Callable[[], None] = lambda: None

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is written."""

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.server.seen.append(int(str(code)))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(dict(self.headers))
        if self.server.login and self.headers.get("Authorization") != _basic(self.server.login):
            return self._answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
        if path in self.server.moved:
            return self._answer(302, {"Location": self.server.moved[path]})
        if ".git/" in path:
            return self._git(path)
        file = self.server.root / path[1:]
        if not file.is_file():
            return self._answer(404, {})
        name, asked, value = "ETag", "If-None-Match", f'"{file.stat().st_mtime_ns}"'
        if not self.server.etags:
            name, asked, value = "Last-Modified", "If-Modified-Since", formatdate(file.stat().st_mtime, usegmt=True)
        if self.headers.get(asked) == value:
            return self._answer(304, {name: value})
        return self._answer(200, {name: value}, file.read_bytes())

    do_POST = do_GET

    def _answer(self, code: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.server.cut])

    def _git(self, path: str) -> None:
        self.server.during()
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": urlsplit(self.path).query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(sent)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=sent, env=environment, capture_output=True, check=True)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self._answer(int(headers.pop("Status", "200").split()[0]), headers, body)


def _basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@contextmanager
def web_server(root: Path) -> Iterator[WebServer]:
    with WebServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """host:port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"

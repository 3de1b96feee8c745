"""TCP proxies before a PostgreSQL server: one cuts a connection at its COMMIT, one shares sessions between clients."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

import psycopg

__all__ = ["CuttingProxy", "TransactionPooler"]


class CuttingProxy:
    """Passes everything on, until it is armed and a client sends a COMMIT, or whatever `at` is.

    "before": both sides are closed, the server never gets it. "after": the server gets it and answers, the client never
    sees that. "silent": the client's side is closed; the server gets nothing and is not told, as when a cable is cut.
    """

    def __init__(self, port: int) -> None:
        """port: the server's, on 127.0.0.1."""
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0
        self.after_cut: Callable[[], None] = lambda: None
        self.armed: list[str] = []
        self.at = b"; COMMIT\0"
        self._mutex = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def arm(self, *modes: str) -> None:
        """The next COMMITs, one for each mode."""
        self.armed += modes

    def close(self) -> None:
        """The listener and all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Every connection that is open now."""
        with self._mutex:
            sockets, self._open = self._open, set()
        _close(*sockets)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._mutex:
                self._open |= {client, server}
            swallow = threading.Event()
            threading.Thread(target=self._up, args=(client, server, swallow), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server, swallow), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(65536):
                if self.armed and self.at in block:
                    mode = self.armed.pop(0)
                    self.cuts += 1
                    if mode == "silent":
                        _close(client)
                        return
                    if mode == "before":
                        break
                    swallow.set()
                server.sendall(block)
        if not swallow.is_set():
            _close(client, server)

    def _down(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := server.recv(65536):
                if swallow.is_set():
                    self.after_cut()
                    break
                client.sendall(block)
        _close(client, server)


class TransactionPooler:
    """Lends one of a few sessions of the server for the length of a transaction, as poolers do; asks for no password."""

    def __init__(self, url: str, *, sessions: int, in_turn: bool = False) -> None:
        """in_turn: the session that was lent longest ago goes first; else the last one."""
        self._servers = [psycopg.connect(url, autocommit=True) for _ in range(sessions)]
        self._free = [socket.socket(fileno=os.dup(server.fileno())) for server in self._servers]
        for server in self._free:
            server.setblocking(True)
        self._all = tuple(self._free)
        self._in_turn = in_turn
        self._changed = threading.Condition()
        self._clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> TransactionPooler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        _close(*self._clients, *self._all)
        for server in self._servers:
            server.close()

    def turn(self) -> None:
        """Another session goes first from now on."""
        with self._changed:
            self._free.append(self._free.pop(0))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        lent: socket.socket | None = None
        with contextlib.suppress(OSError, EOFError):
            self._greet(client)
            while True:
                request = b""
                while request[-5:] != b"S\0\0\0\4" and not request.startswith(b"Q"):
                    kind, message = _message(client)
                    if kind == b"X":
                        raise EOFError
                    request += message
                lent = lent or self._lend()
                lent.sendall(request)
                kind = b""
                while kind != b"Z":
                    kind, message = _message(lent)
                    if message == b"Z\0\0\0\5I":
                        self._take_back(lent)
                        lent = None
                    client.sendall(message)
        _close(client, *([lent] if lent else []))  # gone in the middle of a transaction: that session ends

    def _greet(self, client: socket.socket) -> None:
        code = 0
        while code != 3 << 16:
            (size, code) = struct.unpack("!II", _exactly(client, 8))
            _exactly(client, size - 8)
            if code != 3 << 16:
                client.sendall(b"N")
        answer = b"R" + struct.pack("!II", 8, 0)
        for name in ("server_version", "client_encoding", "standard_conforming_strings", "TimeZone", "integer_datetimes"):
            value = self._servers[0].pgconn.parameter_status(name.encode()) or b""
            body = name.encode() + b"\0" + value + b"\0"
            answer += b"S" + struct.pack("!I", len(body) + 4) + body
        client.sendall(answer + b"K" + struct.pack("!III", 12, 1, 1) + b"Z\0\0\0\5I")

    def _lend(self) -> socket.socket:
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            return self._free.pop(0 if self._in_turn else -1)

    def _take_back(self, server: socket.socket) -> None:
        with self._changed:
            self._free.append(server)
            self._changed.notify()


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    """Its kind, and all of it."""
    head = _exactly(source, 5)
    return head[:1], head + _exactly(source, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = source.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

"""A TCP proxy before a PostgreSQL server that cuts one connection at its COMMIT."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["CuttingProxy"]


class CuttingProxy:
    """Passes everything on, until it is armed and a client sends a COMMIT.

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
                if self.armed and b"; COMMIT\0" in block:
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


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

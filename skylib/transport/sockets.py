"""A plain socket as a ByteChannel."""

from __future__ import annotations

import contextlib
import socket

from skylib.errors import ConnectError

__all__ = ["SocketChannel"]


class SocketChannel:
    """A connected stream socket. `close` ends a blocked receive."""

    def __init__(self, connected: socket.socket, *, host: str) -> None:
        self._socket = connected
        self._host = host

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as exc:
            raise ConnectError(f"the other side is gone: {exc.strerror}", host=self._host) from exc

    def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return self._socket.recv(max_bytes)
        except OSError:
            return b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

"""Joins stdin and stdout to the agent's Unix socket, for a client that can only run a command here."""

from __future__ import annotations

import os
import socket
import sys
import threading

__all__ = ["main"]

_CHUNK = 1 << 16
_NOBODY = 3


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _send_stdin(connection: socket.socket) -> None:
    """Until stdin ends; then the whole bridge does."""
    try:
        while True:
            data = os.read(0, _CHUNK)
            if not data:
                break
            connection.sendall(data)
    except OSError as exc:
        sys.stderr.write(f"bridge: {exc}\n")
        sys.stderr.flush()
    os._exit(0)


def main(path: str) -> int:
    """3 when nobody listens on the socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as exc:
        sys.stderr.write(f"bridge: no agent listens on {path}: {exc.strerror or exc}\n")
        return _NOBODY
    threading.Thread(target=_send_stdin, args=(connection,), daemon=True).start()
    try:
        while True:
            data = connection.recv(_CHUNK)
            if not data:
                break
            _write_all(1, data)
    except OSError:
        pass
    os._exit(0)

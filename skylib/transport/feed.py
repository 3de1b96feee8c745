"""Feeding a command's stdin from a thread of its own, so that its output can be drained at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["PIECE_BYTES", "Feeder", "file_pieces", "pieces"]

PIECE_BYTES = 256 * 1024
"""What one send is given: larger ones are copied too often by paramiko, smaller ones pay more per call."""


def pieces(source: bytes | Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of `source` in pieces of at most PIECE_BYTES; empty ones are left out."""
    parts: Iterable[bytes] = (source,) if isinstance(source, bytes) else source
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            yield bytes(part[start : start + PIECE_BYTES]) if len(part) > PIECE_BYTES else bytes(part)


def file_pieces(path: Path) -> Iterator[bytes]:
    """The content of a local file in pieces."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


class Feeder:
    """Sends a source piece by piece and then the end of it.

    A receiver that stops taking is no error here: how the command ended says why. An error of the source itself is
    kept in `error`, and `on_error` is called, which is to end the command.
    """

    def __init__(
        self,
        source: bytes | Iterable[bytes],
        *,
        send: Callable[[bytes], None],
        finish: Callable[[], None],
        on_error: Callable[[], None],
    ) -> None:
        self._pieces = pieces(source)
        self._send = send
        self._finish = finish
        self._on_error = on_error
        self._stopped = False
        self.sent = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="skylib-stdin", daemon=True)

    def start(self) -> Feeder:
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 5.0) -> None:
        """Wait until the thread has ended. A source that blocks longer than timeout_s is left to end by itself."""
        self._stopped = True
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped:
            try:
                piece = next(self._pieces, None)
            except BaseException as error:  # handed to the caller's thread, which raises it
                self.error = error
                self._on_error()
                return
            try:
                if piece is None:
                    self._finish()
                    return
                self._send(piece)
            except OSError:
                return
            self.sent += len(piece)

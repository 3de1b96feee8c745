"""Reads what is new in a rank's log file, in pieces that end where a line ends, if one does in time."""

from __future__ import annotations

import errno
import os
from typing import IO, NamedTuple, Optional

__all__ = ["MAX_PIECE", "Piece", "Tail", "cut_utf8"]

MAX_PIECE = 1 << 18
_LONG_LINE = 1 << 16
_HOLD_S = 0.08
_HOLD_GROWING_S = 0.25
_TAKEN_AWAY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP})


class Piece(NamedTuple):
    """offset: where it starts in the rank's file. open: its last line goes on in the next piece."""

    offset: int
    data: bytes
    open: bool


def cut_utf8(data: bytes) -> int:
    """Length of `data` without a character at its end that is not whole; all of it when that is no UTF-8 anyway."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < size else len(data)
        if byte < 0x80:
            break
    return len(data)


class Tail:
    """One rank's file from an offset on. A line without its end is held back for a moment, in case the end comes.

    held: whether there is such a line now, which will be given although the file does not grow.
    """

    def __init__(self, path: str, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.held = False
        self._held_at = -1  # where the line that is held begins
        self._held_size = -1
        self._held_since = 0.0
        self._grown_at = 0.0

    def read(self, now: float, *, last: bool, most: int = MAX_PIECE) -> Optional[Piece]:
        """The next piece, not yet taken (`taken` moves on). last: the writer has ended, so nothing is held back.

        most: bytes of it. None when there is nothing to give now. Raises OSError for what may pass.
        """
        self.held = False
        try:
            size = os.stat(self.path).st_size
            if size <= self.offset:
                return None
            with self._open() as file:
                file.seek(self.offset)
                data = file.read(most)
        except OSError as exc:
            if exc.errno in _TAKEN_AWAY:  # by the job itself: there is nothing to give, and no reason to wait
                return None
            raise
        end = data.rfind(b"\n") + 1
        if end:
            return Piece(self.offset, data[:end], False)
        if last and len(data) < most:
            return Piece(self.offset, data, False)
        if len(data) < min(_LONG_LINE, most) and not last and self._hold(now, self.offset + len(data)):
            self.held = True
            return None
        data = data[: cut_utf8(data)]
        return Piece(self.offset, data, True) if data else None

    def _open(self) -> IO[bytes]:
        """Opens the file. One that the job has made unreadable is made readable again, if it is the account's own."""
        try:
            return open(self.path, "rb", buffering=0)
        except PermissionError:
            os.chmod(self.path, 0o600)
            return open(self.path, "rb", buffering=0)

    def taken(self, piece: Piece) -> None:
        self.offset = piece.offset + len(piece.data)

    def _hold(self, now: float, size: int) -> bool:
        """While it may still be the beginning of a line: a little after it grew last, and no longer than some moments."""
        if self.offset != self._held_at:
            self._held_at, self._held_since = self.offset, now
            self._held_size = -1
        if size != self._held_size:
            self._held_size, self._grown_at = size, now
        return now - self._grown_at < _HOLD_S and now - self._held_since < _HOLD_GROWING_S

"""Reads what is new in a rank's log file, in pieces that end where a line ends, if one does in time."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

__all__ = ["MAX_PIECE", "Piece", "Tail", "cut_utf8"]

MAX_PIECE = 1 << 20
_LONG_LINE = 1 << 16
_HOLD_S = 0.08


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
    """One rank's file from an offset on. A line without its end is held back for a moment, in case the end comes."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self._held_size = -1
        self._held_since = 0.0

    def read(self, now: float, *, last: bool) -> Optional[Piece]:
        """The next piece, not yet taken (`taken` moves on). last: the writer has ended, so nothing is held back.

        None when there is nothing to give now.
        """
        try:
            size = os.stat(self.path).st_size
            if size <= self.offset:
                return None
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(MAX_PIECE)
        except FileNotFoundError:
            return None
        end = data.rfind(b"\n") + 1
        if end:
            return Piece(self.offset, data[:end], False)
        if last and len(data) < MAX_PIECE:
            return Piece(self.offset, data, False)
        if len(data) < _LONG_LINE and not last and not self._held_long_enough(now, self.offset + len(data)):
            return None
        data = data[: cut_utf8(data)]
        return Piece(self.offset, data, True) if data else None

    def taken(self, piece: Piece) -> None:
        self.offset = piece.offset + len(piece.data)

    def _held_long_enough(self, now: float, size: int) -> bool:
        if size != self._held_size:
            self._held_size, self._held_since = size, now
            return False
        return now - self._held_since >= _HOLD_S

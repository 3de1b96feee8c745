"""Reads what is new in a rank's log file, in pieces that end where a line ends, if one does in time.

The file is the job's own output, so the job may truncate it: `: > /proc/self/fd/1`, and `> /dev/stderr` in a script. Offsets
count all that was read of a rank and only grow; what the file holds now begins at one of them, which is written down beside
the log once it is not 0, for whoever reads on. A file begins anew when it is shorter than what was read of it, or begins
with other bytes (of the first 4 KiB): then it is read from its beginning, and what was read before stays as it was told.
What is written and truncated between two looks is lost with the file. Not noticed: a file that has grown again past what was
read of it and begins with the same bytes, or did so while nobody looked. A line that was open then goes on with what comes.
A file that is shorter and was not written to since the machine began was cut off by a crash: nothing of it is told again.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import IO, NamedTuple, Optional, Tuple

from .lease import boot_time
from .supervisor import write_file

__all__ = ["MAX_PIECE", "Piece", "Tail", "cut_utf8"]

_log = logging.getLogger(__name__)
MAX_PIECE = 1 << 18
_LONG_LINE = 1 << 16
_FIRST = 4096
_HOLD_S = 0.08
_HOLD_GROWING_S = 0.25
_TAKEN_AWAY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP})


class Piece(NamedTuple):
    """offset: bytes of the rank that were read before it. open: its last line goes on in the next piece."""

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


def _number_in(path: str) -> int:
    """What a file says; 0 when there is none, or no number in it."""
    try:
        with open(path, "rb") as file:
            return max(int(file.read(32)), 0)
    except (OSError, ValueError):
        return 0


class Tail:
    """One rank's file from an offset on. A line without its end is held back for a moment, in case the end comes.

    offset: of all that was read of the rank. held: whether there is such a line now, which will be given although the file
    does not grow.
    """

    def __init__(self, path: str, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.held = False
        self._note = f"{path}.begins"
        self._begins = _number_in(self._note)  # the offset at which what the file holds now begins
        self._first = b""  # how it began when it was looked at last
        self._seen: Tuple[int, int, int] = (0, -1, 0)
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
            found = os.stat(self.path)
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen and found.st_size == self.offset - self._begins:
                return None
            with self._open() as file:
                self._recognise(file.fileno())
                data = os.pread(file.fileno(), most, self.offset - self._begins)
            self._seen = seen
        except OSError as exc:
            if exc.errno in _TAKEN_AWAY:  # by the job itself: there is nothing to give, and no reason to wait
                return None
            raise
        if not data:
            return None
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

    def _recognise(self, handle: int) -> None:
        """Notices when what the file holds is not what was read of it."""
        found = os.fstat(handle)
        place = self.offset - self._begins
        first = os.pread(handle, _FIRST, 0)
        if place < 0:  # what was between was read, but never taken, and is gone
            self._begin(self.offset)
        elif found.st_size < place and found.st_mtime < time.time() - boot_time():
            self._begin(self.offset - found.st_size)
        elif found.st_size < place or not first.startswith(self._first[:place]):
            self._begin(self.offset)
        self._first = first

    def _begin(self, begins: int) -> None:
        if begins == self._begins:
            return
        self._begins = begins
        try:
            write_file(self._note, str(begins).encode())
        except OSError as exc:  # on a full disk it is known to this reader alone
            _log.warning("that %s was truncated cannot be written down: %s", self.path, exc)

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

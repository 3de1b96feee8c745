"""Waits for files to change, by inotify where the kernel and the file system have it."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from typing import Dict, List, Optional

__all__ = ["Wakeup"]

_IN_MODIFY = 0x2
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_IGNORED = 0x8000
_IN_ONLYDIR = 0x01000000
_IN_ONESHOT = 0x80000000
_MASK = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_ONLYDIR | _IN_ONESHOT
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC have their values
_STRIKES = 3


class Wakeup:
    """An event that others set, and that changes in directories set.

    Until `clear` it stays set. One thread waits; any may `set`. A directory tells of one change, then of none until `watch`
    is called again: being told of each would double what a write of few bytes costs the job. trusted: changes in watched
    directories have been told so far. A file system that tells nothing (some network ones) loses that trust by `missed`.
    """

    def __init__(self, *, use_inotify: bool = True) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True) if use_inotify else None
        self._inotify = self._begin()
        self._poll = select.poll()
        for handle in (self._read, self._inotify):
            if handle >= 0:
                self._poll.register(handle, select.POLLIN)
        self._watches: Dict[str, int] = {}
        self._strikes = 0

    def _begin(self) -> int:
        try:
            return int(self._libc.inotify_init1(_FLAGS)) if self._libc is not None else -1
        except AttributeError:  # a C library without it
            return -1

    @property
    def trusted(self) -> bool:
        return self._inotify >= 0 and self._strikes < _STRIKES

    def watch(self, paths: List[str]) -> bool:
        """From now on the next change in each of these directories is told; False when that cannot be, for one at least."""
        for path in set(self._watches) - set(paths):
            self._forget(path)
        missing = [path for path in paths if path not in self._watches and not self._add(path)]
        return self.trusted and not missing

    def _add(self, path: str) -> bool:
        if self._libc is None or self._inotify < 0:
            return False
        number = int(self._libc.inotify_add_watch(self._inotify, os.fsencode(path), _MASK))
        if number >= 0:
            self._watches[path] = number
        return number >= 0

    def _forget(self, path: str) -> None:
        number = self._watches.pop(path)
        if self._libc is not None and number not in self._watches.values():
            self._libc.inotify_rm_watch(self._inotify, number)

    def missed(self) -> None:
        """A change was found that nothing had told of."""
        if not self._poll.poll(0):
            self._strikes += 1

    def set(self) -> None:
        """Ends a wait that is under way, or the next one."""
        try:
            os.write(self._write, b"x")
        except BlockingIOError:
            return  # it is set many times over

    def clear(self) -> None:
        for handle in (self._read, self._inotify):
            try:
                while handle >= 0:
                    data = os.read(handle, 65536)
                    if handle == self._inotify:
                        self._told(data)
                    if len(data) < 32768:  # events come whole, so there may be room left although there are more
                        break
            except BlockingIOError:
                continue

    def _told(self, events: bytes) -> None:
        """A directory that has told of a change is no longer watched."""
        place = 0
        while place < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, place)
            place += _EVENT.size + length
            if mask & _IN_IGNORED:
                for path in [path for path, known in self._watches.items() if known == number]:
                    del self._watches[path]

    def wait(self, timeout_s: float) -> bool:
        """True when it is set; False at the timeout."""
        return bool(self._poll.poll(max(timeout_s, 0.0) * 1000))

    def close(self) -> None:
        handles: List[Optional[int]] = [self._read, self._write, self._inotify]
        self._read = self._write = self._inotify = -1
        for handle in handles:
            if handle is not None and handle >= 0:
                os.close(handle)

"""One file copied into a snapshot: shared with the original where the file system can (FICLONE), else byte for byte.

Never a hard link to the original, which an edit in place would change. Source of the ioctl: ioctl_ficlonerange(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator

import attrs

from skylib.errors import StagingError
from skylib.staging.manifest import Entry, Kind, entry_of

__all__ = ["ATTEMPTS", "Copier", "is_of_target"]

ATTEMPTS = 3
"""How often a file is copied that changes meanwhile."""
_FICLONE = 0x40049409
_SMALL_BYTES = 128 * 1024
_PIECE_BYTES = 16 * 1024 * 1024
_TICK_NS = 20_000_000  # longer than a tick of the clock that files' times are taken from
_COARSE_NS = 2_000_000_000  # where times are whole seconds
_CANNOT_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
_OF_TARGET = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


def is_of_target(error: OSError) -> bool:
    """Whether an error while copying is about the place that is written to."""
    return error.errno in _OF_TARGET


class Copier:
    """Copies files, and remembers which file systems cannot share them. For one thread."""

    def __init__(self, *, progress: Callable[[int], object] | None = None) -> None:
        """progress: called with the bytes of each piece."""
        self._cannot_clone: set[int] = set()
        self._ranges = hasattr(os, "copy_file_range")
        self._progress = progress or (lambda count: None)

    def copy(self, source: str, target: str, path: str) -> Entry | None:
        """Copy the file `source` to `target`, a new file, with mode and time; its entry, or None when it is gone.

        The entry says what was copied: the file may be another one than a scan saw. `ctime_ns` is one that no file has,
        and another each time, when the file was touched so lately that a later edit could have the very same times.
        Raises StagingError (path) for a file that cannot be read, that is none any more, or that changes at each of
        ATTEMPTS; OSError when `target` cannot be written.
        """
        for _attempt in range(ATTEMPTS):
            try:
                reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise _unreadable(source, error) from error
            try:
                before = _settled(reading)
                entry = entry_of(path, before, source)
                if entry is None or entry.kind is not Kind.FILE:
                    raise StagingError(f"{source} was replaced by something else while it was copied", path=source)
                writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    self._content(source, reading, writing, before)
                    after = os.fstat(reading)
                    if _times(before) == _times(after):
                        os.fchmod(writing, entry.mode)
                        os.utime(writing, ns=(entry.mtime_ns, entry.mtime_ns))
                        return entry if _unsettled_ns(after) <= 0 else attrs.evolve(entry, ctime_ns=_no_time())
                finally:
                    os.close(writing)
            finally:
                os.close(reading)
        raise StagingError(
            f"{source} kept changing while it was copied",
            path=source,
            hint="stop what writes to it, or list it in .skyignore or .gitignore",
            retryable=True,
        )

    def _content(self, source: str, reading: int, writing: int, found: os.stat_result) -> None:
        """As many bytes as the file had; when there are fewer by now, its times tell."""
        if found.st_size == 0 or self._cloned(reading, writing, found):
            return
        sparse = found.st_size > _SMALL_BYTES and found.st_blocks * 512 < found.st_size
        parts = _parts_with_data(reading, found.st_size) if sparse else iter([(0, found.st_size)])
        for start, end in parts:
            while start < end:
                try:
                    done = self._piece(reading, writing, start, min(end - start, _PIECE_BYTES))
                except OSError as error:
                    if is_of_target(error):
                        raise
                    raise _unreadable(source, error) from error
                if not done:
                    return
                self._progress(done)
                start += done
        if sparse:
            os.ftruncate(writing, found.st_size)

    def _cloned(self, reading: int, writing: int, found: os.stat_result) -> bool:
        if found.st_dev in self._cannot_clone:
            return False
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError as error:
            if error.errno in _CANNOT_CLONE:
                self._cannot_clone.add(found.st_dev)
            elif is_of_target(error):
                raise
            return False
        self._progress(found.st_size)
        return True

    def _piece(self, reading: int, writing: int, start: int, count: int) -> int:
        """Copy up to `count` bytes at `start`; how many, 0 at the end of the file."""
        if self._ranges and count > _SMALL_BYTES:
            try:
                done = os.copy_file_range(reading, writing, count, start, start)
                if done:
                    return done
            except OSError as error:
                if is_of_target(error):
                    raise
            self._ranges = False  # between these file systems; or one that only says that it can
        piece = os.pread(reading, min(count, 1024 * 1024), start)
        return os.pwrite(writing, piece, start) if piece else 0


def _parts_with_data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file with holes has data, as start and end."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here
                return
            yield end, size
            return
        end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, end


def _times(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(descriptor: int) -> os.stat_result:
    """The file, when an edit after now has other times than it; a file that is touched all the time is waited for once.

    One from the future (the clock of a file server) is not waited for.
    """
    found = os.fstat(descriptor)
    left_ns = _unsettled_ns(found)
    if 0 < left_ns <= _step_ns(found):
        time.sleep(left_ns / 1e9)
        found = os.fstat(descriptor)
    return found


def _unsettled_ns(found: os.stat_result) -> int:
    """How long until an edit cannot have the same times any more; not positive when that is so already."""
    return found.st_ctime_ns + _step_ns(found) - time.time_ns()


def _no_time() -> int:
    """A change time that no file has, and no other call gives."""
    return -1 - secrets.randbits(62)


def _step_ns(found: os.stat_result) -> int:
    return _TICK_NS if found.st_ctime_ns % 1_000_000_000 else _COARSE_NS


def _unreadable(source: str, error: OSError) -> StagingError:
    why = "it was replaced by a link" if error.errno == errno.ELOOP else error.strerror or str(error)
    return StagingError(f"cannot read {source}: {why}", path=source)

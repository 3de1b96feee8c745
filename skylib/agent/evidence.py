"""Why a rank failed, by what its node shows: memory kills, a full disk, its last words."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set

__all__ = [
    "MAX_LINES",
    "disk_is_full",
    "end_record",
    "few",
    "full_disk_error",
    "is_failure",
    "last_lines",
    "reason_of",
    "speaks_of_a_full_disk",
]

MAX_LINES = 20
_MAX_BYTES = 4096
_TAIL = 1 << 16
_SIGKILL, _SIGBUS = 9, 7
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "errno 28]", "errno 122]", "enospc", "edquot")
_KILLED_WORDS = ("sigkill", "signal 9", "exitcode: -9", "exitcode  : -9", "killed")
_ROOM = 16 * 1024
_LOW = 64 << 20
_LOW_FILES = 64


def last_lines(path: str) -> List[str]:
    """The last lines of a log, as `few` needs them once secrets are hidden: at most 20, each as it was printed and whole.

    A line that is cut could begin within a secret, of which nobody would know the rest: one that began more than 64 KiB
    before the end is left out. Of a progress bar its last state counts as a line. Empty lines at the end are left out; what
    is no UTF-8 becomes U+FFFD.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(size - _TAIL, 0)
            file.seek(max(start - 1, 0))
            before = file.read(1) if start else b"\n"
            data = file.read()
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    states = [line.rstrip("\r").split("\r") for line in lines]
    if before != b"\n" and len(states[0]) == 1:
        states = states[1:]
    lines = [state[-1] for state in states]
    while lines and not lines[-1].strip():
        lines.pop()
    kept: List[str] = []
    room = _MAX_BYTES
    for line in reversed(lines[-MAX_LINES:]):
        if room <= 0:
            break
        kept.append(line)
        room -= _cost(line)
    return kept[::-1]


def few(lines: Sequence[str]) -> List[str]:
    """The last of these lines that are 4 KiB together; of one line that is longer alone, its end."""
    kept: List[str] = []
    room = _MAX_BYTES
    for line in reversed(lines):
        if _cost(line) > room:
            if not kept:
                kept.append(line.encode("utf-8", "replace")[-room + 1 :].decode("utf-8", "ignore"))
            break
        kept.append(line)
        room -= _cost(line)
    return kept[::-1]


def _cost(line: str) -> int:
    return len(line.encode("utf-8", "replace")) + 1


def full_disk_error(error: BaseException) -> bool:
    """Whether an error says that there is no room, or no quota left."""
    return isinstance(error, OSError) and error.errno in _FULL


def disk_is_full(places: Iterable[str], *, only_if_low: bool = False) -> str:
    """The first of these directories whose file system takes nothing more; "" when all do. Tries to write: quotas count.

    only_if_low: does not try where there is plenty of room.
    """
    seen: Set[int] = set()
    for place in places:
        try:
            here = os.stat(place).st_dev
            if here in seen:
                continue
            seen.add(here)
            room = os.statvfs(place)
        except OSError:
            continue
        low = room.f_bavail * room.f_frsize < _LOW or (room.f_files > 0 and room.f_favail < _LOW_FILES)
        if (low or not only_if_low) and not _takes(place):
            return place
    return ""


def _takes(place: str) -> bool:
    path = os.path.join(place, f".room.{os.getpid()}.{threading.get_ident()}")
    handle = -1
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return os.write(handle, b"\1" * _ROOM) == _ROOM
    except OSError as exc:
        return not full_disk_error(exc)
    finally:
        if handle >= 0:
            os.close(handle)
            try:
                os.unlink(path)
            except OSError:
                pass


def speaks_of_a_full_disk(lines: Sequence[str]) -> bool:
    """Whether a program's last words are of a disk without room."""
    text = "\n".join(lines).lower()
    return any(words in text for words in _FULL_WORDS)


def reason_of(code: int, signal: Optional[int], *, memory_killed: bool, disk_full: bool, lines: Sequence[str]) -> str:
    """ "exit", "signal", "oom" or "disk_full".

    memory_killed: the kernel killed a process near the rank for want of memory while it ran. That is the cause when the
    rank's shell was killed, or says that its program was (137), or the last words are of a killed process.
    """
    text = "\n".join(lines).lower()
    killed = signal == _SIGKILL or code == 128 + _SIGKILL
    if memory_killed and (killed or (code != 0 and any(words in text for words in _KILLED_WORDS))):
        return "oom"
    if (disk_full or speaks_of_a_full_disk(lines)) and signal in (None, _SIGBUS) and not killed:
        return "disk_full"
    return "signal" if signal else "exit"


def is_failure(record: Mapping[str, Any]) -> bool:
    """Whether that end record is of a rank that did not end well."""
    return "lost" in record or int(record["code"]) != 0 or record.get("reason") == "disk_full"


def _is_cut_off(log: str) -> bool:
    """Whether a full disk may have cut the file off: what does not fit is lost from the end of a block on."""
    try:
        found = os.stat(log)
    except OSError:
        return True
    return found.st_size % max(found.st_blksize, 512) == 0


def end_record(exit_record: Mapping[str, Any], log: str, places: Sequence[str]) -> Dict[str, Any]:
    """What is told of a rank that ended: the record that its supervisor wrote, and for a failure why.

    places: directories that the rank writes to, that of its log first. A rank that exited 0 has failed all the same when
    the disk has cut its log off: what it printed is not whole.
    """
    record: Dict[str, Any] = {"code": int(exit_record["code"]), "signal": exit_record.get("signal"), "reason": "exit"}
    for name in ("at", "mono", "error"):
        if exit_record.get(name) is not None:
            record[name] = exit_record[name]
    if record["code"] == 0:
        if not _is_cut_off(log) or not disk_is_full(places[:1], only_if_low=True):
            return record
        record["reason"] = "disk_full"
    else:
        lines = last_lines(log)
        record["reason"] = reason_of(
            record["code"],
            record["signal"],
            memory_killed=bool(exit_record.get("oom")),
            disk_full=bool(disk_is_full(places)),
            lines=lines,
        )
    record["last_lines"] = last_lines(log)
    return record

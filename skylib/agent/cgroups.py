"""What control groups say and allow: memory kills, and a group of its own for a rank. Imports next to nothing.

Version 2 stands at /sys/fs/cgroup, or at /sys/fs/cgroup/unified beside version 1. A group of its own can be made only by
an account to which its group was delegated, which is seldom; memory kills are counted nearly everywhere.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # a rank's supervisor must start in an instant
    from typing import List, Optional, Set, Tuple

__all__ = ["enter", "kill", "kills_file", "make", "may_make_in", "memory_kills", "pids_in", "remove"]

_TOPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
_MEMORY_V1 = "/sys/fs/cgroup/memory"
_VMSTAT = "/proc/vmstat"


def _groups(pid: str) -> List[Tuple[str, str]]:
    """(controllers, path) of each hierarchy; version 2 has no controllers."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            rows = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    return [(row[1], row[2]) for row in rows if len(row) == 3]


def _unified() -> str:
    return next((top for top in _TOPS if os.path.exists(f"{top}/cgroup.procs")), "")


def memory_kills(path: str) -> int:
    """How often the kernel has killed a process for want of memory, by this file; -1 when it does not say."""
    try:
        with open(path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return -1
    return -1


def kills_file(pid: str = "self") -> str:
    """The file that counts the memory kills nearest to that process: its group's, else the machine's; "" without one."""
    groups = _groups(pid)
    for controllers, path in groups:
        if controllers and "memory" in controllers.split(","):
            for place in (path.rstrip("/"), ""):
                if memory_kills(f"{_MEMORY_V1}{place}/memory.oom_control") >= 0:
                    return f"{_MEMORY_V1}{place}/memory.oom_control"
    top = _unified()
    for controllers, path in groups if top else []:
        while not controllers:
            if memory_kills(f"{top}{path.rstrip('/')}/memory.events") >= 0:
                return f"{top}{path.rstrip('/')}/memory.events"
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return _VMSTAT if memory_kills(_VMSTAT) >= 0 else ""


def may_make_in(pid: str = "self") -> str:
    """The group of that process, when this account may make groups in it and move processes there; else ""."""
    top = _unified()
    for controllers, path in _groups(pid) if top else []:
        place = f"{top}{path.rstrip('/')}"
        if not controllers and os.access(place, os.W_OK) and os.access(f"{place}/cgroup.procs", os.W_OK):
            return place
    return ""


def make(path: str) -> bool:
    """A new group; False when it cannot be made."""
    try:
        os.mkdir(path)
    except OSError:
        return os.path.isdir(path)
    return True


def enter(path: str) -> bool:
    """Moves this process, and with it all that it will begin."""
    try:
        handle = os.open(f"{path}/cgroup.procs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, b"0")
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _below(path: str) -> List[str]:
    """The group and all groups in it, the deepest first."""
    return [folder for folder, _, _ in os.walk(path, topdown=False)]


def pids_in(path: str) -> Set[int]:
    """Processes of a group and of all groups below it; none when it is gone."""
    pids: Set[int] = set()
    for folder in _below(path):
        try:
            with open(f"{folder}/cgroup.procs") as file:
                pids.update(int(line) for line in file)
        except (OSError, ValueError):
            continue
    pids.discard(0)  # of another process namespace
    return pids


def kill(path: str) -> bool:
    """KILLs all of a group at once, whatever they fork meanwhile (Linux 5.14); False where that is not to be had."""
    handle: Optional[int] = None
    try:
        handle = os.open(f"{path}/cgroup.kill", os.O_WRONLY)
        os.write(handle, b"1")
        return True
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)


def remove(path: str) -> None:
    """An empty group and those in it; one that still has processes stays."""
    for folder in _below(path):
        try:
            os.rmdir(folder)
        except OSError:
            continue

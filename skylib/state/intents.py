"""Who is at an intent: whether the process that wrote it down still lives. Intents name a process, never by its name."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

from skylib.state.base import IntentRecord

__all__ = ["LOCKLESS", "PROCESS", "is_living", "this_process"]

PROCESS = "process"  # the key in an intent's details
LOCKLESS = frozenset({"exec", "cancel"})  # begun without the cluster's lock, which would else say who lives
ELSEWHERE_S = 900.0  # how long a process that cannot be looked at is taken to live
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> str:
    """What tells this process from all others that had or will have its pid: boot, process namespace, start; "" unknown."""
    start = _start(os.getpid())
    return f"{_place()} {start}" if start else ""


def is_living(intent: IntentRecord, *, now: float) -> bool:
    """Whether the process that began it may still be at it. now: unix seconds.

    Of a process on another machine, or in another container, nothing is known: it counts as living for 15 minutes.
    """
    boot, space, start = (*str(intent.details.get(PROCESS) or "").split(), "", "", "")[:3]
    here = intent.host == socket.gethostname()
    if not here or (start and space != _space()):
        return now - intent.begun_at < ELSEWHERE_S
    if start:
        return boot == _boot() and _start(intent.pid) == start
    try:
        os.kill(intent.pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _start(pid: int) -> str:
    """In clock ticks since boot; "" when there is no such process, or it waits to be buried, or nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _place() -> str:
    return f"{_boot()} {_space()}"


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip() or "-"
    except OSError:
        return "-"


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"

"""Processes of ours: known by what they inherited and when they began, never by a name."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

from .identity import stat_fields

__all__ = ["Ended", "Process", "ancestors", "carrying", "end", "is_alive", "own", "read", "read_environ", "with_descendants"]

_SETTLE_S = 0.02
_KILL_WAIT_S = 5.0


class Process(NamedTuple):
    """start: clock ticks between boot and its begin; with the pid it names one process of this boot."""

    pid: int
    ppid: int
    session: int
    state: str
    start: int


class Ended(NamedTuple):
    """Pids: what is gone, and what could not be ended."""

    ended: List[int]
    survivors: List[int]


def read(pid: int) -> Optional[Process]:
    """None when there is no such process (any more)."""
    fields = stat_fields(pid)
    if not fields:
        return None
    return Process(pid, int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[19]))


def is_alive(pid: int, start: int) -> bool:
    """A zombie is not alive."""
    process = read(pid)
    return process is not None and process.start == start and process.state not in "ZX"


def own() -> Dict[int, Process]:
    """Every live process of this account, by pid."""
    uid = os.geteuid()
    found: Dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != uid:
                continue
        except OSError:
            continue
        process = read(int(name))
        if process is not None and process.state not in "ZX":
            found[process.pid] = process
    return found


def _environ(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + file.read() + b"\0"
    except OSError:
        return b""


def read_environ(pid: int) -> Dict[str, str]:
    """The variables that a process began with; empty when they cannot be read."""
    entries = _environ(pid).decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def carrying(processes: Iterable[Process], variables: Mapping[str, str]) -> Set[int]:
    """Pids of those that began with all of these environment variables."""
    wanted = [f"\0{name}={value}\0".encode() for name, value in variables.items()]
    pids: Set[int] = set()
    for process in processes:
        environ = _environ(process.pid)
        if all(entry in environ for entry in wanted):
            pids.add(process.pid)
    return pids


def with_descendants(processes: Mapping[int, Process], pids: Iterable[int]) -> Set[int]:
    """Those of the pids that exist, and everything below them."""
    children: Dict[int, List[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
    todo = [pid for pid in pids if pid in processes]
    found: Set[int] = set()
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def ancestors(processes: Mapping[int, Process], pid: int) -> Set[int]:
    """The pid itself and every process above it."""
    found: Set[int] = set()
    while pid in processes and pid not in found:
        found.add(pid)
        pid = processes[pid].ppid
    return found


def _signal(process: Process, number: int) -> None:
    """Signals that very process: a pidfd, where Python has it, cannot hit a later owner of the pid."""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        if is_alive(process.pid, process.start):
            _ignore_gone(lambda: os.kill(process.pid, number))
        return
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if is_alive(process.pid, process.start):
            _ignore_gone(lambda: signal.pidfd_send_signal(handle, number))  # type: ignore[attr-defined, unused-ignore]
    finally:
        os.close(handle)


def _ignore_gone(call: Callable[[], None]) -> None:
    try:
        call()
    except (ProcessLookupError, PermissionError):
        pass


def end(find: Callable[[], List[Process]], *, grace_s: float, kill_wait_s: float = _KILL_WAIT_S) -> Ended:
    """TERM to all that `find` finds, again and again until grace_s is over, then KILL; verified by finding nothing.

    `find` is asked each time, so that what is forked meanwhile is found as well. One TERM for each process.
    """
    seen: Dict[int, int] = {}
    termed: Set[int] = set()
    kill_at = time.monotonic() + grace_s
    give_up_at = kill_at + kill_wait_s
    pause = 0.002
    while True:
        left = find()
        if not left:
            return Ended(sorted(seen), [])
        now = time.monotonic()
        if now >= give_up_at:
            survivors = {process.pid for process in left}
            return Ended(sorted(set(seen) - survivors), sorted(survivors))
        for process in left:
            seen[process.pid] = process.start
            if now >= kill_at:
                _signal(process, signal.SIGKILL)
            elif process.pid not in termed:
                termed.add(process.pid)
                _signal(process, signal.SIGTERM)
        time.sleep(pause)
        pause = min(pause * 2, _SETTLE_S)

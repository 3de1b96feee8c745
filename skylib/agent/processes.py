"""Processes of ours: known by what they inherited and when they began, never by a name."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set

from .identity import stat_fields

__all__ = [
    "Ended",
    "Process",
    "ancestors",
    "carrying",
    "end",
    "everyone",
    "is_alive",
    "of_this_account",
    "own",
    "read",
    "read_environ",
    "with_descendants",
]

_SETTLE_S = 0.02
_KILL_WAIT_S = 5.0
_FOREIGN_WAIT_S = 0.5
_STOP_ROUNDS = 40


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


def everyone() -> Dict[int, Process]:
    """Every live process that this account can see, by pid."""
    found: Dict[int, Process] = {}
    for name in os.listdir("/proc"):
        process = read(int(name)) if name.isdigit() else None
        if process is not None and process.state not in "ZX":
            found[process.pid] = process
    return found


def of_this_account(processes: Mapping[int, Process]) -> Dict[int, Process]:
    """Those of them that run as this account."""
    uid = os.geteuid()
    found: Dict[int, Process] = {}
    for pid, process in processes.items():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                found[pid] = process
        except OSError:
            continue
    return found


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


def _signal(process: Process, number: int) -> bool:
    """Signals that very process: a pidfd, where Python has it, cannot hit a later owner of the pid. False: it may not."""
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return not is_alive(process.pid, process.start) or _may(lambda: os.kill(process.pid, number))
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if is_alive(process.pid, process.start):
            return _may(lambda: signal.pidfd_send_signal(handle, number))  # type: ignore[attr-defined, unused-ignore]
        return True
    finally:
        os.close(handle)


def _may(call: Callable[[], None]) -> bool:
    """False when the process is another account's. One that is gone is fine."""
    try:
        call()
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _nothing() -> None:
    return


def end(
    find: Callable[[], List[Process]],
    *,
    grace_s: float,
    kill_wait_s: float = _KILL_WAIT_S,
    at_kill: Callable[[], None] = _nothing,
) -> Ended:
    """TERM to all that `find` finds, again and again until grace_s is over, then KILL; verified by finding nothing.

    `find` is asked each time, so that what is forked meanwhile is found as well. One TERM for each process. Before KILL all
    are stopped, until no new ones come: a process that ends would make room for one more of those that fork without end.
    at_kill: called when KILL begins. What belongs to another account and is not ended by its own parent is a survivor.
    """
    seen: Set[int] = set()
    termed: Set[int] = set()
    stopped: Set[int] = set()
    refused: Set[int] = set()
    kill_at = time.monotonic() + grace_s
    give_up_at = kill_at + kill_wait_s
    pause, rounds = 0.002, 0
    while True:
        left = find()
        here = {process.pid for process in left}
        seen |= here
        now = time.monotonic()
        if not left or now >= give_up_at or (here <= refused and now >= kill_at + _FOREIGN_WAIT_S):
            return Ended(sorted(seen - here), sorted(here))
        if now < kill_at:
            for process in left:
                if process.pid not in termed:
                    termed.add(process.pid)
                    _signal(process, signal.SIGTERM)
        elif here - stopped and rounds < _STOP_ROUNDS:
            rounds += 1
            stopped |= here
            for process in left:
                _signal(process, signal.SIGSTOP)
            continue
        else:
            at_kill()
            for process in left:
                if not _signal(process, signal.SIGKILL):
                    refused.add(process.pid)
        time.sleep(pause)
        pause = min(pause * 2, _SETTLE_S)

"""One agent a node: the lock on a file that says who it is, and how one agent takes another's place.

And one end of a node at a time, for which who begins an agent waits, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from typing import Any, Callable, Dict, Mapping, Optional, Set, Tuple

from .config import AgentConfig
from .processes import is_alive, read

__all__ = ["take_over", "wait_for_ends", "write_holder"]

_START_S = 20.0
_END_S = 30.0  # longer than one takes


def _lock(config: AgentConfig) -> Tuple[int, Optional[Dict[str, Any]]]:
    """(handle, None) with the lock held, or (-1, who holds it)."""
    handle = os.open(os.path.join(config.sky, "agent.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle, None
    except OSError:
        text = os.pread(handle, 4096, 0).decode()
        os.close(handle)
        return -1, json.loads(text) if text else {}


def _standing(holder: Mapping[str, Any], config: AgentConfig, *, asleep: bool) -> Tuple[bool, bool]:
    """(it serves as well as we would, it makes room for us) of the agent that holds the lock.

    An agent of another bundle or cluster makes room, as does one that is asleep for one that is not; never the reverse.
    So does one whose guardian has ended: nobody would begin it anew.
    """
    ours = holder.get("cluster_id") == config.cluster_id
    same = ours and holder.get("bundle") == config.bundle
    if holder.get("asleep"):
        return same and asleep, not (same and asleep)
    serves = ours if asleep else same and _is_guarded(holder)
    return serves, not asleep and not serves


def _is_guarded(holder: Mapping[str, Any]) -> bool:
    """False also of one that has not written down its guardian."""
    pid, start = holder.get("guardian") or (0, 0)
    return pid > 0 and is_alive(int(pid), int(start))


def take_over(config: AgentConfig, *, asleep: bool) -> int:
    """The lock's handle; -1 when an agent that will do runs already."""
    until = time.monotonic() + _START_S
    asked: Set[int] = set()
    while True:
        handle, holder = _lock(config)
        if holder is None:
            return handle
        serves, makes_room = _standing(holder, config, asleep=asleep)
        pid, start = int(holder.get("pid") or 0), int(holder.get("start") or 0)
        alive = pid > 0 and is_alive(pid, start)  # else a new one has not written itself down yet
        if serves and holder.get("listens") and alive:
            return -1
        if makes_room and alive and pid not in asked:
            asked.add(pid)
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > until:
            raise TimeoutError(f"another agent holds {config.sky}/agent.lock: {holder}")
        time.sleep(0.02)


def write_holder(handle: int, config: AgentConfig, *, listens: bool, asleep: bool, guardian: int = 0) -> None:
    """Who holds the lock, for those that come later. listens: its socket accepts.

    guardian: its pid, 0 for none. One that has ended meanwhile is not written down, nor who became our parent instead.
    """
    me, parent = read(os.getpid()), read(guardian) if guardian and guardian == os.getppid() else None
    holder = {
        "pid": os.getpid(),
        "start": me.start if me else 0,
        "bundle": config.bundle,
        "cluster_id": config.cluster_id,
        "listens": listens,
        "asleep": asleep,
        "guardian": [parent.pid, parent.start] if parent is not None else None,
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def wait_for_ends(config_path: str, *, wanted: Callable[[], bool] = lambda: True) -> None:
    """Waits until nobody else is at the end of this node; from now on others wait for us, until this process is over.

    An end whose client was killed goes on. A later one would find nothing left to do, and whatever is begun after it, or
    to read what is left, would be ended by the earlier one. wanted: whether to wait any longer.
    """
    until = time.monotonic() + _END_S
    try:
        handle = os.open(config_path, os.O_RDONLY | os.O_CLOEXEC)  # the file itself: a full disk has no room for another
    except OSError:
        return  # who reads it says so
    while time.monotonic() < until and wanted():
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return

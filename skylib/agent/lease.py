"""A lease: without a client's contact for so long, each node ends the cluster on itself, whoever else is gone.

The deadline is kept in lease.json, in seconds since this boot (suspended time included), so that neither a restart of the
agent nor a clock that is set moves it. It is written seldom and never too early: an agent that comes back ends the cluster
a little late rather than early.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, Optional

from .config import AgentConfig
from .identity import boot_id
from .supervisor import write_file

__all__ = ["Lease", "boot_time", "identity", "in_words", "margin_s", "pause_s", "spread_every_s"]

_UNHEARD_S = 60.0
_WORKER_UNHEARD_S = 600.0
_LONGEST_PAUSE_S = 30.0


def boot_time() -> float:
    """Seconds since the machine booted; it goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def identity(config: AgentConfig) -> str:
    """Of one beginning of a cluster in one boot: what was kept by an agent of another one says nothing about this."""
    return f"{config.cluster_id}/{config.standing}/{boot_id()}"


def margin_s(lease_s: float) -> float:
    """By how much what is written down, or told to a worker, may be later than what is due."""
    return min(10.0, lease_s / 10)


def pause_s(lease_s: float) -> float:
    """How often those whose requests are open are asked for a sign of life."""
    return min(_LONGEST_PAUSE_S, lease_s / 4)


def spread_every_s(lease_s: float) -> float:
    """How often the head tells its workers."""
    return min(_LONGEST_PAUSE_S, lease_s / 10)


def in_words(seconds: float) -> str:
    """7200 as "2 h"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


class Lease:
    """This node's. lease_s: None for none; left_s: until it runs out.

    Kept on disk, beside jobs.db. What is there already of this beginning goes on.
    """

    def __init__(self, config: AgentConfig, *, clock: Callable[[], float] = boot_time) -> None:
        self._path = os.path.join(config.sky, "lease.json")
        self._identity = identity(config)
        self._clock = clock
        self._written: Optional[Dict[str, Any]] = None
        self._seen: Optional[int] = None
        self.lease_s: Optional[float] = None
        self._until = 0.0
        if not self.read() and config.lease_s:
            unheard = _UNHEARD_S if config.role == "head" else _WORKER_UNHEARD_S
            self.lease_s = config.lease_s
            self._until = clock() + max(config.lease_s, unheard)

    def read(self) -> bool:
        """What the file says, if it has changed and is of this beginning; else nothing changes, and False."""
        try:
            changed_at = os.stat(self._path).st_mtime_ns
            if changed_at == self._seen:
                return False
            with open(self._path, "rb") as file:
                kept = json.loads(file.read().decode())
            if kept["identity"] != self._identity:
                return False
            self.lease_s = None if kept["lease_s"] is None else float(kept["lease_s"])
            self._until = float(kept["until"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._seen, self._written = changed_at, kept
        return True

    def renew(self) -> None:
        """A client was in contact."""
        if self.lease_s is not None:
            self._until = self._clock() + self.lease_s

    def set(self, lease_s: Optional[float]) -> None:
        """From now on. Raises ValueError; OSError when it cannot be written down; then all is as it was."""
        if lease_s is not None and not 0 < lease_s < float("inf"):
            raise ValueError(f"a lease of {lease_s} s")
        before = self.lease_s, self._until
        self.lease_s = lease_s
        self.renew()
        try:
            self.save(at_once=True)
        except OSError:
            self.lease_s, self._until = before
            raise

    def told(self, lease_s: Optional[float], left_s: float) -> None:
        """By the head, to a worker. Raises OSError when it cannot be written down."""
        self.lease_s = lease_s
        self._until = self._clock() + left_s + (margin_s(lease_s) if lease_s is not None else 0.0)
        self.save(at_once=True)

    @property
    def left_s(self) -> Optional[float]:
        """0 when it has run out; None without a lease."""
        return None if self.lease_s is None else max(self._until - self._clock(), 0.0)

    def save(self, *, at_once: bool = False) -> None:
        """Writes the deadline down, a little later than it is, and only when the last one is behind it. Raises OSError."""
        kept = self._written
        if self.lease_s is None and (kept is None or kept["lease_s"] is None):
            return
        behind = kept is None or kept["lease_s"] != self.lease_s or self._until > float(kept["until"])
        if not behind and not (at_once and kept is not None and self._until < float(kept["until"])):
            return
        until = self._until + (0.0 if at_once or self.lease_s is None else margin_s(self.lease_s))
        record = {"identity": self._identity, "lease_s": self.lease_s, "until": until}
        write_file(self._path, json.dumps(record).encode())
        self._written = record
        self._seen = os.stat(self._path).st_mtime_ns

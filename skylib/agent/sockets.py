"""Which TCP ports processes of this account listen on, by what they hold open."""

from __future__ import annotations

import os
from typing import Dict, Iterable, Set

__all__ = ["listening_ports", "ports_of"]

_LISTEN = "0A"


def listening_ports() -> Dict[str, int]:
    """Inode of each listening TCP socket of this network -> its port. Source: /proc/net/tcp and tcp6."""
    found: Dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = file.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN:
                found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def ports_of(pids: Iterable[int]) -> Set[int]:
    """The ports that these processes listen on; none of a process that is gone or not ours."""
    ports = listening_ports()
    found: Set[int] = set()
    for pid in pids:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                link = _link(f"/proc/{pid}/fd/{name}")
                if link.startswith("socket:[") and link[8:-1] in ports:
                    found.add(ports[link[8:-1]])
        except OSError:
            continue
    return found


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

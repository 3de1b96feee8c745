"""SSH sessions of this account: somebody sits at a terminal of this node."""

from __future__ import annotations

import os
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Set

__all__ = ["Terminal", "read_terminal", "sessions", "ssh_sessions"]

_PTS_FIRST, _PTS_LAST = 136, 143  # major numbers of /dev/pts/N
_SERVERS = ("sshd", "dropbear")


class Terminal(NamedTuple):
    """A process. tty: the device number of its controlling terminal, 0 for none."""

    pid: int
    ppid: int
    name: str
    tty: int

    @property
    def on_pts(self) -> bool:
        return _PTS_FIRST <= (self.tty >> 8) & 0xFFF <= _PTS_LAST

    @property
    def is_server(self) -> bool:
        """sshd, sshd-session and sshd-auth (OpenSSH 9.8 and later), dropbear."""
        return self.name.startswith(_SERVERS)


def read_terminal(pid: int) -> Optional[Terminal]:
    """None when there is no such process (any more), or it may not be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    name = text[text.index(b"(") + 1 : text.rindex(b")")].decode("utf-8", "replace")
    fields = text[text.rindex(b")") + 2 :].split()
    return Terminal(pid, int(fields[1]), name, int(fields[4]))


def sessions(pids: Iterable[int], read: Callable[[int], Optional[Terminal]]) -> Set[int]:
    """Those of the processes that sit on a pseudo-terminal below an SSH server.

    What an SSH channel without a terminal runs is no session: our own channels, and commands, are of that kind. A
    process that left its server behind (tmux, nohup) is none either.
    """
    known: Dict[int, Optional[Terminal]] = {}

    def look(pid: int) -> Optional[Terminal]:
        if pid not in known:
            known[pid] = read(pid)
        return known[pid]

    def below_server(process: Terminal) -> bool:
        seen: List[int] = []
        above = look(process.ppid)
        while above is not None and above.pid not in seen:
            if above.is_server:
                return True
            seen.append(above.pid)
            above = look(above.ppid)
        return False

    found = set()
    for pid in pids:
        process = look(pid)
        if process is not None and process.on_pts and below_server(process):
            found.add(pid)
    return found


def ssh_sessions() -> int:
    """How many processes of this account there are that `sessions` means."""
    uid = os.geteuid()
    mine = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                mine.append(int(name))
        except OSError:
            continue
    return len(sessions(mine, read_terminal))

"""What else this machine does while something is timed: quiet before a run, and where CPU seconds went during one."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.report import table

__all__ = ["Usage", "settle", "watch"]

_TICKS = os.sysconf("SC_CLK_TCK")
# What a command line has of a process's own name, and how that is called; the first that fits.
_NAMES = (
    ("runtime_env/agent", "ray runtime-env agent"),
    ("dashboard/agent", "ray dashboard agent"),
    ("dashboard/dashboard", "ray dashboard"),
    ("log_monitor", "ray log monitor"),
    ("monitor.py", "ray autoscaler monitor"),
    ("ray.util.client.server", "ray client server"),
    ("default_worker", "ray worker"),
    ("ray::", "ray worker"),
    ("raylet/raylet", "ray raylet"),
    ("gcs_server", "ray gcs"),
    ("/ray start", "ray start"),
    ("pyz ranks", "agent's connection to Ray"),
    ("pyz daemon", "agent"),
    ("pyz", "agent, other"),
    ("sshd", "sshd"),
    ("ssh ", "ssh"),
)


def settle(*, idle: float = 0.90, within_s: float = 60.0) -> float:
    """Wait until the machine was idle for a second, or for as long as that; the idle share of the last second."""
    deadline = time.monotonic() + within_s
    while True:
        busy, wall = _busy(), time.monotonic()
        time.sleep(1.0)
        share = 1.0 - (_busy() - busy) / ((time.monotonic() - wall) * (os.cpu_count() or 1))
        if share >= idle or time.monotonic() > deadline:
            return share


def _busy() -> float:
    """CPU seconds that all processors have spent on anything."""
    user, nice, system, _idle, _wait, irq, soft, *_ = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, soft))) / _TICKS


class Usage:
    """CPU seconds of processes by kind, from samples of /proc: what ends between two samples is missed in part."""

    def __init__(self, keeper_pid: int) -> None:
        self._keeper = keeper_pid
        self._seconds: dict[str, float] = defaultdict(float)
        self._spent: dict[tuple[int, int], float] = {}
        self._names: dict[tuple[int, int], str] = {}
        self.wall = self.busy = 0.0

    def sample(self, *, first: bool = False) -> None:
        parents: dict[int, int] = {}
        busy: list[tuple[int, int, float, float]] = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = stat.rpartition(")")[2].split()
            pid, start, spent = int(entry), int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS
            parents[pid] = int(fields[1])
            before = self._spent.get((pid, start), spent if first else 0.0)
            self._spent[pid, start] = spent
            if spent > before:
                busy.append((pid, start, before, spent))
        for pid, start, before, spent in busy:
            name = self._name(pid, parents) or self._names.get((pid, start), "ended soon")
            self._names[pid, start] = name
            self._seconds[name] += spent - before

    def _name(self, pid: int, parents: dict[int, int]) -> str:
        if pid == os.getpid():
            return "this process"
        if not self._is_ours(pid, parents):
            return "others on this machine"
        try:
            line = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        for part, name in _NAMES:
            if part in line:
                return name
        return os.path.basename(line.split(" ")[0])

    def _is_ours(self, pid: int, parents: dict[int, int]) -> bool:
        """A process of a host, or below this one."""
        while pid > 1:
            if pid in (self._keeper, os.getpid()):
                return True
            pid = parents.get(pid, 0)
        return False

    @property
    def foreign_seconds(self) -> float:
        """CPU seconds of what has nothing to do with the measurement: the noise."""
        return self._seconds.get("others on this machine", 0.0)

    @property
    def own_seconds(self) -> float:
        """CPU seconds of everything but that, processes too short-lived to be seen included."""
        return max(self.busy - self.foreign_seconds, 0.0)

    @property
    def busy_share(self) -> float:
        return self.busy / (self.wall * (os.cpu_count() or 1))

    def text(self, title: str) -> str:
        rows = sorted(self._seconds.items(), key=lambda row: -row[1])
        head = f"{title}: {self.wall:.2f} s, processors busy {self.busy_share:.0%}, {self.busy:.2f} cpu-s"
        return table(head, ("process", "cpu-s"), [(name, f"{spent:.2f}") for name, spent in rows if spent >= 0.02])


@contextmanager
def watch(keeper_pid: int, *, every_s: float = 0.1) -> Iterator[Usage]:
    """Samples while the block runs. keeper_pid: ancestor of all hosts' processes (Testbed.keeper_pid)."""
    usage = Usage(keeper_pid)
    ended = threading.Event()
    usage.sample(first=True)
    busy, wall = _busy(), time.monotonic()

    def run() -> None:
        while not ended.wait(every_s):
            usage.sample()

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        usage.busy, usage.wall = _busy() - busy, time.monotonic() - wall
        ended.set()
        thread.join()
        usage.sample()

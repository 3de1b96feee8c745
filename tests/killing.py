"""Clients in processes of their own that kill themselves at a point of a verb: a step's boundary, or a write of the store.

Points are found by a recording run, which lists what the verb came by. Steps are seen through the caller's own event sink,
the store's transactions by a sqlite3 that hands out connections which tell: nothing of skylib is wrapped.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

__all__ = ["CLUSTER", "KillPoint", "Setting", "VERBS", "live", "record"]

CLUSTER = "c"
IDLE_MINUTES = 30
VERBS = ("launch", "autostop", "exec", "stop", "start", "down")
_CHECKOUT = Path(__file__).resolve().parents[1]
_TIMEOUT_S = 180


@attrs.frozen(order=True)
class KillPoint:
    """The number-th time (from 1) that a verb comes by `what`: "<step> <phase>", "before commit" or "after commit"."""

    verb: str
    what: str
    number: int

    def __str__(self) -> str:
        return f"{self.verb}: {self.what}" + (f" ({self.number})" if self.number > 1 else "")


@attrs.frozen(kw_only=True)
class Setting:
    """What a child works with. config: its client's. workdir: what it brings to the nodes; there is a `file` in it."""

    home: Path
    config: Mapping[str, object]
    workdir: Path


def live(setting: Setting, point: KillPoint, *, key: str) -> bool:
    """Run the verb in a child that dies at the point; whether it did. key: of the job. A verb that fails is raised."""
    done = _child(setting, point.verb, key, point=point)
    if done.returncode == -signal.SIGKILL:
        return True
    assert done.returncode == 0, done.stderr
    return False


def record(setting: Setting, verb: str, notes: Path) -> list[KillPoint]:
    """Run the verb to its end; the points that it came by, in order."""
    done = _child(setting, verb, f"recorded {verb}", notes=notes)
    assert done.returncode == 0, done.stderr
    return [KillPoint(verb, what, number) for what, number in json.loads(notes.read_text())]


def _child(
    setting: Setting, verb: str, key: str, *, point: KillPoint | None = None, notes: Path | None = None
) -> subprocess.CompletedProcess[str]:
    given = {
        "home": str(setting.home),
        "config": dict(setting.config),
        "workdir": str(setting.workdir),
        "verb": verb,
        "key": key,
        "point": None if point is None else [point.what, point.number],
        "notes": None if notes is None else str(notes),
    }
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    argv = [sys.executable, str(Path(__file__))]
    return subprocess.run(
        argv, env=environment, input=json.dumps(given), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


class Fate:
    """In the child: counts what is come by, writes it down, and kills the process at its point."""

    def __init__(self, point: tuple[str, int] | None, notes: Path | None) -> None:
        self._point = point
        self._notes = notes
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._seen: list[tuple[str, int]] = []

    def watch_sqlite(self) -> None:
        """Every connection that is opened from now on tells of the commits of what it writes."""
        meet, connect = self.meet, sqlite3.connect

        class Told(sqlite3.Connection):
            writes = False

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith("BEGIN"):
                    self.writes = sql == "BEGIN IMMEDIATE"
                if not sql.startswith("COMMIT") or not self.writes:
                    return super().execute(sql, *args)
                meet("before commit")
                done = super().execute(sql, *args)
                meet("after commit")
                return done

        sqlite3.connect = lambda *args, **options: connect(*args, **{**options, "factory": Told})

    def passed(self, event: Any) -> None:
        """A sink of skylib's events."""
        self.meet(f"{event.step} {event.phase.value}")

    def meet(self, what: str) -> None:
        """Nobody hears of it when this is the point."""
        with self._lock:
            self._counts[what] += 1
            this = (what, self._counts[what])
            self._seen.append(this)
            if self._notes is not None:
                self._notes.write_text(json.dumps(self._seen))
            if this == self._point:
                os.kill(os.getpid(), signal.SIGKILL)


def main(given: dict[str, Any]) -> None:
    """The child: one verb of one client."""
    import skylib

    point = tuple(given["point"]) if given["point"] else None
    fate = Fate(point, Path(given["notes"]) if given["notes"] else None)
    task = skylib.Task(
        run="cat file", num_nodes=2, workdir=given["workdir"], resources=skylib.Resources(infra="ssh/lab")
    )
    client = skylib.Client(given["home"], config=given["config"], events=fate.passed)
    acts = {
        "launch": lambda: client.launch(task, CLUSTER, key=given["key"]),
        "exec": lambda: client.exec(task, CLUSTER, key=given["key"]),
        "stop": lambda: client.stop(CLUSTER),
        "start": lambda: client.start(CLUSTER),
        "down": lambda: client.down(CLUSTER),
        "autostop": lambda: client.autostop(CLUSTER, IDLE_MINUTES),
    }
    fate.watch_sqlite()
    acts[given["verb"]]()


if __name__ == "__main__":
    main(json.load(sys.stdin))

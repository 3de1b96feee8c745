"""The head's idle timer: what was last seen of the cluster, kept over a restart of the agent.

Times are of the monotonic clock, which all processes of one boot share: a wall clock that is set stops nothing early and
keeps nothing awake. After a reboot the setting holds and the time counts from the agent's beginning.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from typing import Any, Callable, Collection, Optional, Set

from .autostop import Autostop, Load, due_in, is_busy, parse_autostop
from .config import AgentConfig
from .db import JobsDb
from .lease import identity
from .sessions import ssh_sessions

__all__ = ["Idleness"]

_log = logging.getLogger(__name__)
_SETTING_KEY = "autostop"
_ACTIVE_KEY = "active"
_SAVE_S = 2.0
_LOOK_S = 2.0


class Idleness:
    """One for the head's agent. look_for: counts SSH sessions; it may take a while and is asked in another thread.

    resumed: an agent of this beginning of the cluster was here before; the time goes on where it was.
    """

    def __init__(
        self,
        config: AgentConfig,
        db: JobsDb,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_for: Callable[[], int] = ssh_sessions,
    ) -> None:
        self._cluster_id = config.cluster_id
        self._identity = identity(config)
        self._db = db
        self._clock = clock
        self._look_for = look_for
        self._load = Load()
        self._running: Set[str] = set()
        self._looked_at = self._saved = float("-inf")
        self._active = self._begun = clock()
        self.setting: Optional[Autostop] = None
        self.resumed = self._resume()

    def _resume(self) -> bool:
        kept = self._db.get(_ACTIVE_KEY)
        if not isinstance(kept, dict) or kept.get("identity") != self._identity:
            return False
        now = self._clock()
        self._active, self._begun = min(float(kept["active"]), now), min(float(kept["begun"]), now)
        return True

    def load(self, given: Any, *, asleep: bool) -> None:
        """The setting that was last made, else the one of the configuration. Raises ValueError when it is none."""
        kept = self._db.get(_SETTING_KEY)
        if kept is not None and kept.get("cluster_id") == self._cluster_id:
            self.setting = parse_autostop(kept["setting"])
        elif not asleep:
            self.set(parse_autostop(given))

    def set(self, setting: Optional[Autostop]) -> None:
        """None: no timer. The time begins anew. Raises sqlite3.Error when it cannot be kept; then all is as it was."""
        value = {"cluster_id": self._cluster_id, "setting": setting.to_json() if setting else None}
        self._db.put(_SETTING_KEY, value)
        self.setting = setting
        self._begun = self._clock()
        self.touch()
        self.save(at_once=True)

    def touch(self) -> None:
        """Something happened just now."""
        self._active = self._clock()

    def notice(self, running: Collection[str], queued: int) -> None:
        """What there is to do now. running: names of the jobs that are set up or run."""
        if not self._running.issuperset(running):
            self._begun = self._clock()
        self._running = set(running)
        self._load = self._load._replace(running=len(self._running), queued=queued)
        if is_busy("jobs", self._load):
            self.touch()

    async def look(self, running: Collection[str], queued: int) -> Optional[float]:
        """Seconds until the cluster is to stop if nothing happens; None: nothing is due."""
        self.notice(running, queued)
        setting, now = self.setting, self._clock()
        may_sit = setting is not None and setting.wait_for == "jobs_and_ssh" and not self._load.running
        if may_sit and (now - self._looked_at >= _LOOK_S or self._due() == 0):
            await self._count_sessions()
        self.save()
        return self._due()

    async def _count_sessions(self) -> None:
        found = await asyncio.get_event_loop().run_in_executor(None, self._look_for)
        self._looked_at = self._clock()
        self._load = self._load._replace(sessions=found)
        if found:
            self.touch()

    def _due(self) -> Optional[float]:
        return due_in(self.setting, load=self._load, idle_s=self.idle_s)

    @property
    def idle_s(self) -> float:
        """For how long there was nothing of what the setting waits for; without a setting, no job."""
        none = self.setting is not None and self.setting.wait_for == "none"
        return max(self._clock() - (self._begun if none else self._active), 0.0)

    def save(self, *, at_once: bool = False) -> None:
        """Writes down what a restart goes on from, every few seconds at most; a disk that is full is tried again."""
        last = max(self._active, self._begun)
        if last <= self._saved or not (at_once or last - self._saved >= _SAVE_S):
            return
        try:
            self._db.put(_ACTIVE_KEY, {"identity": self._identity, "active": self._active, "begun": self._begun})
        except sqlite3.Error as exc:
            _log.warning("when the cluster was last busy cannot be written down: %s", exc)
            return
        self._saved = last

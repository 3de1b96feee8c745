"""What a session and the views of it that tasks tune have in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from skylib import __version__
from skylib.forks import watch
from skylib.paths import SkyHome, secure_home
from skylib.runtime.agent_client import AgentClient, bridge_command
from skylib.runtime.layout import NodeLayout
from skylib.transport.base import Transport

__all__ = ["Agents", "Parts"]

_T = TypeVar("_T")


class Agents:
    """The kept channels to clusters' agents: one for each life of a cluster and time that an answer may take."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._known: dict[tuple[str, float], AgentClient] = {}

    def get(
        self, cluster: str, cluster_id: str, transport: Transport, python: str, layout: NodeLayout, *, timeout_s: float
    ) -> AgentClient:
        """The same one every time; its channel is opened when it is first asked."""
        with self._parts.lock:
            known = self._known.get((cluster_id, timeout_s))
            if known is None:
                known = AgentClient(
                    transport,
                    bridge_command(python, layout),
                    cluster=cluster,
                    cluster_id=cluster_id,
                    version=__version__,
                    call_timeout_s=timeout_s,
                )
                self._known[cluster_id, timeout_s] = known
            return known

    def close(self, cluster_id: str | None = None) -> None:
        """Close and forget those of one life of a cluster; None: all."""
        with self._parts.lock:
            keys = [key for key in self._known if cluster_id in (None, key[0])]
            agents = [self._known.pop(key) for key in keys]
        for agent in agents:
            agent.close()


class Parts:
    """What a session and its tuned views share: parts made late, channels to agents, intents that they are at."""

    def __init__(self, made: Mapping[str, object | None], home: SkyHome) -> None:
        self.home = home
        self.secured_by = 0  # the process that has looked who can reach the home
        self.lock = threading.RLock()
        self.made = {name: part for name, part in made.items() if part is not None}
        self.agents = Agents(self)
        self.intents: set[int] = set()
        watch(self, in_child=Parts._renew)

    def get(self, name: str, make: Callable[[], _T]) -> _T:
        """Raises StateError for a home that is not private and cannot be made so."""
        with self.lock:
            if self.secured_by != os.getpid():
                secure_home(self.home)
                self.secured_by = os.getpid()
            if name not in self.made:
                self.made[name] = make()
            return cast(_T, self.made[name])

    def _renew(self) -> None:
        """A forked child has no thread that would give the lock back, and is at no intent."""
        self.lock = threading.RLock()
        self.intents.clear()

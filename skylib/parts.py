"""What a session and the views of it that tasks tune have in common."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from skylib.forks import watch
from skylib.paths import SkyHome, secure_home
from skylib.runtime.agent_client import AgentClient

__all__ = ["Parts"]

_T = TypeVar("_T")


class Parts:
    """What a session and its tuned views share: parts made late, channels to agents, intents that they are at."""

    def __init__(self, made: Mapping[str, object | None], home: SkyHome) -> None:
        self.home = home
        self.secured_by = 0  # the process that has looked who can reach the home
        self.lock = threading.RLock()
        self.made = {name: part for name, part in made.items() if part is not None}
        self.agents: dict[tuple[str, float], AgentClient] = {}  # by cluster_id and the time that an answer may take
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

"""The store of one home: `<home>/state.db`, SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable

from skylib.events import EventSink, discard
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state.connections import Connections
from skylib.state.store import SqlStore

__all__ = ["SqliteStore"]


class SqliteStore(SqlStore):
    """A StateStore in a file. Nothing is opened or made before the first call."""

    def __init__(
        self,
        home: SkyHome,
        *,
        locks: Locks | None = None,
        clock: Callable[[], float] = time.time,
        events: EventSink = discard,
    ) -> None:
        """events: told when the home is on a network file system."""
        self._connections = Connections(home, locks or Locks(home), events=events, clock=clock)
        super().__init__(self._connections, clock=clock)

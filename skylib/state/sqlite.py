"""The store of one home: `<home>/state.db`, SQLite in WAL mode."""

from __future__ import annotations

import time
from collections.abc import Callable

from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state.connections import Connections
from skylib.state.store import SqlStore

__all__ = ["SqliteStore"]


class SqliteStore(SqlStore):
    """A StateStore in a file. Nothing is opened or made before the first call."""

    def __init__(self, home: SkyHome, *, locks: Locks | None = None, clock: Callable[[], float] = time.time) -> None:
        self._connections = Connections(home, locks or Locks(home))
        super().__init__(self._connections, clock=clock)

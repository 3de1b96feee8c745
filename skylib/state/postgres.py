"""The store of all homes that share a database: PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable

from skylib.events import EventSink, discard
from skylib.models.secret import Secret
from skylib.state.pg_connections import PgConnections
from skylib.state.store import SqlStore

__all__ = ["PostgresStore"]


class PostgresStore(SqlStore):
    """A StateStore in PostgreSQL. Nothing is opened or made before the first call."""

    def __init__(
        self,
        url: Secret | str,
        *,
        clock: Callable[[], float] = time.time,
        application: str = "skylib",
        bound_s: float = 30.0,
        lock_wait_s: float = 30.0,
        events: EventSink = discard,
    ) -> None:
        """bound_s: how long a database that is away is asked again. lock_wait_s: how long for other writers.

        Raises ConfigError when `url` is no URL of a PostgreSQL database.
        """
        connections = PgConnections(url, application=application, bound_s=bound_s, lock_wait_s=lock_wait_s, events=events)
        super().__init__(connections, clock=clock)

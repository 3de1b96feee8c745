"""Stores for tests, by kind. A test that takes `kind` of KINDS runs on each database that the library knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skylib.paths import SkyHome
from skylib.state.base import StateStore
from skylib.state.postgres import PostgresStore
from skylib.state.sqlite import SqliteStore
from tests.postgres import shared_server

__all__ = ["KINDS", "Opener", "opened_stores"]

KINDS = ("sqlite", "postgres")

# Opens one more store on the same state. Its argument: the store's clock, by default time.time.
Opener = Callable[..., StateStore]


@contextmanager
def opened_stores(kind: str, folder: Path) -> Iterator[Opener]:
    """State that begins empty and is this test's alone; the stores are closed and it is gone when the block ends.

    folder: an empty one, for what is kept in files.
    """
    opened: list[StateStore] = []
    url = shared_server().new_database() if kind == "postgres" else ""

    def opener(clock: Callable[[], float] = time.time) -> StateStore:
        store = _open(kind, folder, url, clock)
        opened.append(store)
        return store

    try:
        yield opener
    finally:
        for store in opened:
            store.close()


def _open(kind: str, folder: Path, url: str, clock: Callable[[], float]) -> StateStore:
    if kind == "postgres":
        return PostgresStore(url, clock=clock)
    if kind == "sqlite":
        return SqliteStore(SkyHome(folder / "home"), clock=clock)
    raise ValueError(f"no such kind of store: {kind}")

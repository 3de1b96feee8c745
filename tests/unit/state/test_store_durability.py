"""Which changes wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from skylib.locks import Locks
from skylib.models.cluster import ClusterStatus
from skylib.paths import SkyHome
from skylib.state.backend import Connection
from skylib.state.connections import Connections
from skylib.state.store import SqlStore
from tests.records import cluster_record, job_record

_T = TypeVar("_T")


class Watched:
    """A home's connections, and how each write was asked for."""

    def __init__(self, home: SkyHome) -> None:
        self._connections = Connections(home, Locks(home))
        self.where = self._connections.where
        self.close = self._connections.close
        self.read = self._connections.read
        self.synced: list[int] = []

    def write(self, action: Callable[[Connection], _T], *, durable: bool = True) -> _T:
        def watched(connection: Connection) -> _T:
            self.synced.append(connection.rows("PRAGMA synchronous")[0][0])
            return action(connection)

        return self._connections.write(watched, durable=durable)


@pytest.fixture
def backend(tmp_path: Path) -> Watched:
    return Watched(SkyHome(tmp_path / "home"))


_FULL, _NORMAL = 2, 1
_CHANGES: dict[str, tuple[int, Callable[[SqlStore], object]]] = {
    "begin_launch": (_FULL, lambda store: store.begin_launch(cluster_record("other"))),
    "save_cluster": (_FULL, lambda store: store.save_cluster(cluster_record())),
    "claim_hosts": (_FULL, lambda store: store.claim_hosts("ssh/lab", ["h1"], "train", "train-1", 1.0)),
    "begin_intent": (_FULL, lambda store: store.begin_intent("launch", "train")),
    "remove_cluster": (_FULL, lambda store: store.remove_cluster("train", at=2.0)),
    "config_set": (_FULL, lambda store: store.config_set("key", 1)),
    "config_add": (_FULL, lambda store: store.config_add("key", 1)),
    "settle": (_NORMAL, lambda store: store.settle("train", ClusterStatus.UP, at=2.0)),
    "add_event": (_NORMAL, lambda store: store.add_event("train", "note", at=2.0)),
    "save_jobs": (_NORMAL, lambda store: store.save_jobs("train-1", [job_record()])),
    "release_hosts": (_NORMAL, lambda store: store.release_hosts("train-1")),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_what_may_exist_is_on_disk_before_it_is_made(backend: Watched, name: str) -> None:
    """Intents, claims, launches, removals and configuration are synced; what can be seen again need not be."""
    level, change = _CHANGES[name]
    store = SqlStore(backend)
    store.begin_launch(cluster_record())
    backend.synced.clear()
    change(store)
    assert backend.synced == [level]
    store.close()


def test_an_intent_is_settled_without_waiting_for_the_disk(backend: Watched) -> None:
    """A settlement that is lost is found out again; the next synced change takes it to the disk, too."""
    store = SqlStore(backend)
    intent = store.begin_intent("launch", "train")
    store.settle_intent(intent, "done")
    assert backend.synced == [_FULL, _NORMAL]
    store.close()

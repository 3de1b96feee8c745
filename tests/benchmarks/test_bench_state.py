"""How long the store takes, beside the same work done by bare sqlite3 in the same run."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skylib.models.cluster import ClusterStatus
from skylib.paths import SkyHome
from skylib.state.sqlite import SqliteStore
from tests.records import cluster_record, node_record

pytestmark = pytest.mark.bench


def _best_ms(work: Callable[[], object], *, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best * 1000


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    home = SkyHome(tmp_path / "home")
    store = SqliteStore(home)
    for number in range(200):
        nodes = tuple(node_record(rank) for rank in range(3))
        store.begin_launch(cluster_record(f"c{number}", nodes=nodes, launched_at=float(number)))
    store.close()
    return home


def test_status_of_200_clusters(home: SkyHome) -> None:
    """At most 10 ms, with the opening of the store."""

    def bare() -> None:
        connection = sqlite3.connect(home.state_db)
        connection.execute("SELECT * FROM clusters").fetchall()
        connection.close()

    def status() -> None:
        store = SqliteStore(home)
        assert len(store.clusters()) == 200
        store.close()

    ours, floor = _best_ms(status, times=60), _best_ms(bare, times=60)
    print(f"\nstatus of 200 clusters of 3 nodes: {ours:.1f} ms; bare sqlite3, nothing decoded: {floor:.1f} ms")
    assert ours <= 10


def test_claim_and_release(home: SkyHome) -> None:
    """A host claimed and released, each on disk: at most 10 ms together."""
    store = SqliteStore(home)

    def work() -> None:
        store.claim_hosts("ssh/lab", ["h1"], "c1", "c1-1", 1.0)
        store.release_hosts("c1-1")

    work()
    ours = _best_ms(work, times=30)
    settle = _best_ms(lambda: store.settle("c1", ClusterStatus.UP, at=time.time()), times=30)
    print(f"\nclaim + release of a host: {ours:.1f} ms; settle: {settle:.1f} ms")
    assert ours <= 10

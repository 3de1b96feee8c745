"""How long a cost report takes over a long history."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import pytest

from skylib.ops.cost import costs_since
from skylib.paths import SkyHome
from skylib.results import CostReport
from skylib.session import Session
from skylib.state.rows import CLUSTER_SCHEMA, cluster_document
from skylib.state.sqlite import SqliteStore
from tests.records import cluster_record, node_record

pytestmark = pytest.mark.bench

LIVES = 100_000
LIVE_NOW = 1_000
DAY_S = 86_400.0
YEARS = 3
NOW = 2_000 * DAY_S


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    """Lives of two nodes, spread over three years, an hour or four each; a thousand stand and run."""
    home = SkyHome(tmp_path_factory.mktemp("cost") / "home")
    store = SqliteStore(home)
    assert store.clusters() == []
    store.close()
    nodes = tuple(node_record(rank, price_per_hour=1.25) for rank in range(2))
    first = NOW - YEARS * 365 * DAY_S
    step = (NOW - 5 * 3600 - first) / LIVES
    lives, spans = [], []
    for number in range(LIVES):
        at = first + number * step
        ended = at + 3600 * (1 + number % 4) if number < LIVES - LIVE_NOW else None
        record = cluster_record(f"c{number}", f"id{number}", nodes=nodes, num_nodes=2, launched_at=at)
        lives.append((record.cluster_id, record.name, at, ended, CLUSTER_SCHEMA, cluster_document(record), number + 1))
        spans.append((record.cluster_id, at, ended))
    with sqlite3.connect(home.state_db) as connection:
        connection.executemany(
            "INSERT INTO cluster_history (cluster_id, name, launched_at, ended_at, schema, record, seq) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            lives,
        )
        connection.executemany('INSERT INTO usage_intervals (cluster_id, start, "end") VALUES (?, ?, ?)', spans)
    connection.close()
    return home


def _best_ms(work: Callable[[], object], *, times: int) -> tuple[float, float]:
    """Milliseconds by the clock, and of this process alone: a busy machine changes the first."""
    walls, own = [], []
    for _ in range(times):
        began, worked = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - began)
        own.append(time.process_time() - worked)
    return min(walls) * 1000, min(own) * 1000


def test_a_cost_report_over_a_long_history(home: SkyHome) -> None:
    """With 100,000 lives: a month in at most 600 ms of work, where all of it takes many times that."""
    session = Session(home.root, clock=lambda: NOW)

    def report(days: float) -> CostReport:
        rows, since, until = costs_since(session, days)
        return CostReport(clusters=rows, since=since, until=until)

    month, ever = report(30), report(YEARS * 366)
    assert len(ever) == LIVES
    assert LIVE_NOW < len(month) < LIVES / 20
    (wall, quick), (_, slow) = _best_ms(lambda: report(30), times=5), _best_ms(lambda: report(YEARS * 366), times=1)
    shown = _best_ms(month._repr_html_, times=3)[1]
    print(
        f"\ncost report of {LIVES} lives: 30 days ({len(month)} rows) {quick:.0f} ms of work, {wall:.0f} ms by the clock; "
        f"its table {shown:.0f} ms; all of them {slow:.0f} ms"
    )
    session.close()
    assert quick <= 600
    assert quick <= slow / 5

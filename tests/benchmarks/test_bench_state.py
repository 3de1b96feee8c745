"""How long the store takes with 1,000 clusters of 3 nodes and 100,000 lives in history, beside SkyPilot's own store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from skylib.client import Client
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.paths import SkyHome
from skylib.state.rows import CLUSTER_SCHEMA, cluster_document
from skylib.state.sqlite import SqliteStore
from tests.benchmarks.report import Report
from tests.benchmarks.skypilot import NotInstallable, SkyPilot, SkyPilotProcess
from tests.processes import run_at_once
from tests.records import cluster_record, node_record

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

_CLUSTERS, _NODES, _HISTORY = 1_000, 3, 100_000
_WRITERS, _WRITE_S = 8, 3.0
_DAY = 86_400.0


def _record(number: int) -> ClusterRecord:
    nodes = tuple(
        node_record(rank, host=f"host{number}-{rank}", ray_node_id=f"{number:056x}", runtime_digest=f"{rank:064x}")
        for rank in range(_NODES)
    )
    at = time.time() - number
    return cluster_record(f"c{number}", nodes=nodes, num_nodes=_NODES, launched_at=at, status_since=at, ray_port=6380)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SkyHome:
    """The clusters are launched and UP through the store; lives that are over are written to its tables at once."""
    home = SkyHome(tmp_path_factory.mktemp("state") / "home")
    store = SqliteStore(home)
    for number in range(_CLUSTERS):
        record = _record(number)
        store.begin_launch(record)
        store.settle(record.name, ClusterStatus.UP, at=record.launched_at)
    store.close()
    document = cluster_document(_record(0))
    began = time.time() - 400 * _DAY
    lives = [(f"past{number}", f"c{number % 5000}", began + number * 300.0) for number in range(_HISTORY)]
    connection = sqlite3.connect(home.state_db)
    connection.executemany(
        "INSERT INTO cluster_history (cluster_id, name, launched_at, ended_at, schema, record, seq) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(key, name, at, at + 3600, CLUSTER_SCHEMA, document, 2000 + n) for n, (key, name, at) in enumerate(lives)],
    )
    connection.executemany(
        'INSERT INTO usage_intervals (cluster_id, start, "end") VALUES (?, ?, ?)',
        [(key, at, at + 3600) for key, _, at in lives],
    )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return home


@pytest.fixture(scope="module")
def skypilot() -> SkyPilot:
    try:
        return SkyPilot.here((_CLUSTERS, _NODES, _HISTORY))
    except NotInstallable as error:
        pytest.skip(str(error))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _opening(home: SkyHome) -> tuple[float, float]:
    """Seconds until a Client has answered for one cluster, and for all, in a new process, all imported before."""
    code = (
        "import sys, time, skylib.client, skylib.state.sqlite, sqlite3, sqlite_utils, portalocker, yaml\n"
        "begun = time.perf_counter()\n"
        "client = skylib.client.Client(home=sys.argv[1])\n"
        "assert len(client.status('c500')) == 1\n"
        "opened = time.perf_counter() - begun\n"
        f"assert len(client.status()) == {_CLUSTERS}\n"
        "print(opened, time.perf_counter() - begun)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    argv = [sys.executable, "-c", code, str(home.root)]
    said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    opened, first = (float(word) for word in said.split())
    return opened, first


def test_status(home: SkyHome) -> None:
    """At most 25 ms when this Client knows the clusters; a Client of a new process opened, one cluster read: 60 ms."""
    report = Report(f"status of {_CLUSTERS} clusters of {_NODES} nodes, {_HISTORY} lives in history", unit="ms")
    client, store = Client(home=home.root), SqliteStore(home)
    client.status()
    report.bound("status, warm", 0.025)
    report.bound("Client opened, one cluster", 0.060)

    def cold() -> None:
        store._decoder = type(store._decoder)()
        store.clusters()

    def bare() -> None:
        with sqlite3.connect(home.state_db) as connection:
            rows = connection.execute("SELECT record FROM clusters ORDER BY launched_at DESC").fetchall()
        assert len([json.loads(row[0]) for row in rows]) == _CLUSTERS

    for _ in range(15):
        report.add("bare sqlite3 and json, no records", _seconds(bare))
        began = time.process_time()
        report.add("status, warm", _seconds(client.status))
        report.add("- its processor time", time.process_time() - began)
        report.add("status, every cluster decoded", _seconds(cold))
        report.add("one cluster", _seconds(lambda: store.cluster("c500")))
        report.add("history of one name", _seconds(lambda: store.history(name="c500")))
    for _ in range(7):
        opened, first = _opening(home)
        report.add("Client opened, one cluster", opened)
        report.add("Client and first status of all", first)
    report.add("history of 30 days", _seconds(lambda: store.history(time.time() - 30 * _DAY)))
    report.against("status, warm", "bare sqlite3 and json, no records")
    report.against("status, every cluster decoded", "bare sqlite3 and json, no records")
    report.print()
    client.close()
    store.close()
    assert report.best("status, warm") <= 0.025
    assert report.best("Client opened, one cluster") <= 0.060


def test_claim_and_release(home: SkyHome) -> None:
    """A host claimed and released, the claim on disk: at most 5 ms together."""
    report = Report("one change", unit="ms")
    report.bound("claim + release of a host", 0.005)
    store = SqliteStore(home)
    record = store.cluster("c1")
    assert record is not None

    def claim() -> None:
        store.claim_hosts("ssh/lab", ["h1"], "c1", record.cluster_id, 1.0)
        store.release_hosts(record.cluster_id)

    def intent() -> None:
        store.settle_intent(store.begin_intent("exec", "c1"), "done")

    claim()
    for number in range(60):
        status = (ClusterStatus.UNREACHABLE, ClusterStatus.UP)[number % 2]
        report.add("claim + release of a host", _seconds(claim))
        report.add("settle of a status", _seconds(lambda: store.settle("c1", status, at=time.time())))
        report.add("intent begun + settled", _seconds(intent))
    report.print()
    store.close()
    assert report.best("claim + release of a host") <= 0.005


def _settles(home: SkyHome) -> Callable[[int], Callable[[], bytes]]:
    """Each process settles a cluster of its own to another status, which is an event, as often as it can."""

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            store, count, until = SqliteStore(home), 0, time.perf_counter() + _WRITE_S
            while time.perf_counter() < until:
                status = (ClusterStatus.UNREACHABLE, ClusterStatus.UP)[count % 2]
                store.settle(f"c{number}", status, at=time.time())
                count += 1
            return str(count).encode()

        return run

    return work


def _intents(home: SkyHome) -> Callable[[int], Callable[[], bytes]]:
    """Each process writes down what it is about to do, on disk, and that it is done."""

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            store, count, until = SqliteStore(home), 0, time.perf_counter() + _WRITE_S
            while time.perf_counter() < until:
                store.settle_intent(store.begin_intent("exec", f"c{number}"), "done")
                count += 1
            return str(count).encode()

        return run

    return work


def _rate(work: Callable[[int], Callable[[], bytes]], writers: int) -> tuple[float, list[int]]:
    counts = [int(said) for said in run_at_once([work(number) for number in range(10, 10 + writers)])]
    return sum(counts) / _WRITE_S, counts


def test_eight_processes_write(home: SkyHome) -> None:
    """At least 500 settles a second in all, each with its event, none of them lost."""
    before = {number: len(SqliteStore(home).events(f"c{number}", limit=10**6)) for number in range(10, 10 + _WRITERS)}
    settles, counts = _rate(_settles(home), _WRITERS)
    alone, _ = _rate(_settles(home), 1)
    intents, each = _rate(_intents(home), _WRITERS)
    intents_alone, _ = _rate(_intents(home), 1)
    print(f"\nsettles of a status with its event, a second: {settles:.0f} by {_WRITERS} processes, {alone:.0f} by one")
    print(f"  of each process in {_WRITE_S:g} s: {sorted(counts)}")
    print(f"intents on disk and settled, a second: {intents:.0f} by {_WRITERS} processes, {intents_alone:.0f} by one")
    print(f"  of each process in {_WRITE_S:g} s: {sorted(each)}")
    store = SqliteStore(home)
    for number, count in list(zip(range(10, 10 + _WRITERS), counts, strict=True))[1:]:
        assert len(store.events(f"c{number}", limit=10**6)) - before[number] == count
    assert settles >= 500


@pytest.fixture
def rivals(skypilot: SkyPilot, tmp_path: Path) -> Iterator[list[SkyPilotProcess]]:
    """As many processes of SkyPilot's as there are writers, on one copy of its home, all ready."""
    home = skypilot.copied_home(tmp_path / "sky")
    with ExitStack() as stack:
        yield [stack.enter_context(SkyPilotProcess(skypilot, home)) for _ in range(_WRITERS)]


def test_beside_skypilot(home: SkyHome, rivals: list[SkyPilotProcess]) -> None:
    """The same reads and the same kind of change, in turns: ours take less."""
    report = Report(f"beside SkyPilot 0.14.1: {_CLUSTERS} clusters of {_NODES} nodes", unit="ms")
    client, store, one = Client(home=home.root), SqliteStore(home), rivals[0]
    client.status()
    for _ in range(7):
        one.ask("read")
        theirs = one.answer()
        assert theirs["clusters"] == _CLUSTERS
        report.add("SkyPilot: get_clusters()", theirs["whole_s"])
        report.add("SkyPilot: get_clusters(summary_response=True)", theirs["summary_s"])
        report.add("status, warm", _seconds(client.status))
        store._decoder = type(store._decoder)()
        report.add("status, every cluster decoded", _seconds(store.clusters))
    for rival in rivals:
        report.add("SkyPilot: first get_clusters() of a process", rival.facts["first_s"])
        report.add("Client and first status", _opening(home)[1])
        report.add("SkyPilot: its imports", rival.facts["imported_s"])
    for ours in ("status, warm", "status, every cluster decoded"):
        report.against(ours, "SkyPilot: get_clusters()")
    report.against("Client and first status", "SkyPilot: first get_clusters() of a process")
    for writers in (1, _WRITERS):
        for rival in rivals[:writers]:
            rival.ask(f"settle {_WRITE_S}")
        answers = [rival.answer() for rival in rivals[:writers]]
        theirs_a_second = sum(answer["changes"] for answer in answers) / _WRITE_S
        failed = sum(answer["failed"] for answer in answers)
        ours_a_second, _ = _rate(_settles(home), writers)
        report.note(
            f"status and its event, a second, by {writers} processes: ours {ours_a_second:.0f}, SkyPilot's "
            f"{theirs_a_second:.0f} ({failed:.0f} failed): {ours_a_second / theirs_a_second:.1f} x"
        )
    report.print()
    assert report.ratio("status, every cluster decoded", "SkyPilot: get_clusters()") < 1
    assert report.ratio("Client and first status", "SkyPilot: first get_clusters() of a process") < 1

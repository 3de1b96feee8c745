"""Stores of each released schema version, as SQL (tests/data/state), and what becomes of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from skylib.models.cluster import ClusterStatus
from skylib.models.job import JobStatus
from skylib.paths import SkyHome
from skylib.state import migrations
from skylib.state.base import UsageInterval
from skylib.state.migrations import SCHEMA_VERSION
from skylib.state.sqlite import SqliteStore
from tests.processes import run_at_once
from tests.records import cluster_record

_RELEASED = Path(__file__).parents[2] / "data" / "state"
_VERSIONS = range(1, SCHEMA_VERSION)


def _old_store(folder: Path, version: int) -> SkyHome:
    """A home whose store is of that version, with rows in each of its tables."""
    home = SkyHome(folder / f"home{version}")
    home.root.mkdir(mode=0o700)
    connection = sqlite3.connect(home.state_db, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript((_RELEASED / f"v{version}.sql").read_text())
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()
    return home


def _ask(home: SkyHome, sql: str) -> list[tuple]:  # type: ignore[type-arg]
    connection = sqlite3.connect(home.state_db)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _shape(path: Path) -> dict[str, object]:
    """Each table's columns, foreign keys and indexes."""
    connection = sqlite3.connect(path)

    def pragma(name: str, of: str) -> list[tuple]:  # type: ignore[type-arg]
        return connection.execute(f'PRAGMA {name}("{of}")').fetchall()

    def indexes(table: str) -> Iterable[tuple[object, ...]]:
        for _, name, unique, origin, _partial in pragma("index_list", table):
            yield unique, origin, tuple(column for _, _, column in pragma("index_info", name))

    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    shape: dict[str, object] = {
        table: (
            [column[1:] for column in pragma("table_info", table)],
            sorted(key[2:] for key in pragma("foreign_key_list", table)),
            sorted(indexes(table)),
        )
        for table in tables
    }
    connection.close()
    return shape


@pytest.mark.parametrize("version", _VERSIONS)
def test_eight_processes_open_an_old_store_at_once(tmp_path: Path, version: int) -> None:
    """All of them see its clusters in order, though three were launched at one time; each step ran once."""
    home = _old_store(tmp_path, version)

    def work() -> bytes:
        return json.dumps([record.name for record in SqliteStore(home).clusters()]).encode()

    assert run_at_once([work] * 8) == [b'["b", "train", "a"]'] * 8
    assert _ask(home, "SELECT version FROM migrations ORDER BY version") == [
        (number,) for number in range(1, SCHEMA_VERSION + 1)
    ]
    assert _ask(home, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("version", _VERSIONS)
def test_nothing_of_an_old_store_is_lost(tmp_path: Path, version: int) -> None:
    """Records, lives with their usage, claims and jobs are what they were."""
    store = SqliteStore(_old_store(tmp_path, version))
    train = store.cluster("train")
    assert train is not None
    assert (train.cluster_id, train.status, train.ray_port, len(train.nodes)) == ("train-2", ClusterStatus.UP, 6380, 2)
    assert [(life.cluster_id, life.ended_at) for life in store.history()] == [
        ("b-2", None),
        ("train-2", None),
        ("a-2", None),
        ("train-1", 130.0),
    ]
    assert [life.intervals for life in store.history(name="train")] == [
        (UsageInterval(start=210.0),),
        (UsageInterval(start=110.0, end=130.0),),
    ]
    assert store.claims() == {("ssh/lab", "host0"): "train", ("ssh/lab", "host1"): "train"}
    assert [(job.job_id, job.status) for job in store.jobs("train")] == [
        (1, JobStatus.RUNNING),
        (2, JobStatus.RUNNING),
        (1, JobStatus.SUCCEEDED),
    ]


def test_events_intents_and_values_of_a_version_2_store_are_kept(tmp_path: Path) -> None:
    """An intent that was open is open still."""
    store = SqliteStore(_old_store(tmp_path, 2))
    assert [event.details["to"] for event in store.events("train")] == ["INIT", "UP", None, "INIT", "UP"]
    (intent,) = store.open_intents()
    assert (intent.intent_id, intent.operation, intent.cluster, intent.pid) == (2, "stop", "b", 4711)
    assert store.config_get("key") == {"a": [1]}


@pytest.mark.parametrize("version", _VERSIONS)
def test_an_old_store_goes_on(tmp_path: Path, version: int) -> None:
    """It takes all kinds of changes, and a life that begins after is the newest of its time."""
    store = SqliteStore(_old_store(tmp_path, version))
    store.settle("train", ClusterStatus.STOPPED, at=300.0)
    store.remove_cluster("train", at=310.0)
    store.begin_launch(cluster_record("new", launched_at=200.0))
    store.claim_hosts("ssh/lab", ["host0"], "new", "new-1", 320.0)
    store.settle_intent(store.begin_intent("launch", "new"), "done")
    store.add_event("new", "note", at=330.0)
    store.config_set("other", 1)
    assert [record.name for record in store.clusters()] == ["new", "b", "a"]
    assert store.claims() == {("ssh/lab", "host0"): "new"}
    assert store.history(name="train")[0].intervals == (UsageInterval(start=210.0, end=300.0),)


@pytest.mark.parametrize("version", _VERSIONS)
def test_an_old_store_gets_the_tables_of_a_new_one(tmp_path: Path, version: int) -> None:
    """Column by column, and index by index."""
    old, new = _old_store(tmp_path, version), SkyHome(tmp_path / "new")
    for home in (old, new):
        store = SqliteStore(home)
        store.clusters()
        store.close()
    assert _shape(old.state_db) == _shape(new.state_db)


@pytest.mark.parametrize("version", _VERSIONS)
def test_released_steps_do_what_they_did(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps make the tables that the release with that many had: a change is a new step at the end."""
    released = _old_store(tmp_path, version)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", version)
    connection = sqlite3.connect(tmp_path / "again.db", isolation_level=None)
    migrations.migrate(connection, where="again.db")
    connection.close()
    assert _shape(tmp_path / "again.db") == _shape(released.state_db)

"""What is particular to the store in a file: the file itself, its settings, its versions, and damage."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from skylib.errors import MigrationError, StateError
from skylib.paths import SkyHome
from skylib.state import connections as connections_module
from skylib.state import migrations
from skylib.state.backend import Connection
from skylib.state.migrations import SCHEMA_VERSION
from skylib.state.sqlite import SqliteStore
from tests.processes import Child, run_at_once
from tests.records import cluster_record


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


@pytest.fixture
def store(home: SkyHome) -> SqliteStore:
    return SqliteStore(home)


def _ask(home: SkyHome, sql: str) -> list[tuple]:  # type: ignore[type-arg]
    connection = sqlite3.connect(home.state_db)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_nothing_is_made_before_the_first_call(home: SkyHome, store: SqliteStore) -> None:
    """Making and showing a store touches no file."""
    assert "state.db" in repr(store)
    store.close()
    assert not home.root.exists()


def test_files_are_private(home: SkyHome, store: SqliteStore) -> None:
    """The database and what SQLite puts beside it have mode 0600, whatever the umask."""
    before = os.umask(0)
    try:
        store.begin_launch(cluster_record())
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in home.root.glob("state.db*")}
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert sorted(file.name for file in home.root.iterdir()) == ["locks", *sorted(modes)]


def test_a_file_that_others_can_read_is_made_private(home: SkyHome, store: SqliteStore) -> None:
    """At the next opening."""
    store.clusters()
    store.close()
    home.state_db.chmod(0o644)
    SqliteStore(home).clusters()
    assert stat.S_IMODE(home.state_db.stat().st_mode) == 0o600


def test_settings_of_a_connection(store: SqliteStore) -> None:
    """Write-ahead log, full sync, foreign keys."""

    def ask(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [connection.rows(f"PRAGMA {name}")[0][0] for name in names]

    assert store._connections.write(ask) == ["wal", 2, 1]
    assert store._connections.write(ask, durable=False) == ["wal", 1, 1]


def test_each_migration_is_recorded_once(home: SkyHome) -> None:
    """Eight processes open a fresh store at the same moment; each step has one record."""

    def work() -> bytes:
        SqliteStore(home).clusters()
        return b"ok"

    run_at_once([work] * 8)
    assert _ask(home, "SELECT version FROM migrations ORDER BY version") == [
        (number,) for number in range(1, SCHEMA_VERSION + 1)
    ]
    assert _ask(home, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_a_step_that_fails_changes_nothing(home: SkyHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store stays at the version before it, and the next opening does the step."""
    first, second = migrations._STEPS[:2]

    def breaks(db: Database) -> None:
        second(db)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_STEPS", (first, breaks))
        with pytest.raises(StateError, match="disk I/O error"):
            SqliteStore(home).clusters()
    assert _ask(home, "PRAGMA user_version") == [(1,)]
    assert _ask(home, "SELECT name FROM sqlite_master WHERE name IN ('events', 'intents', 'config')") == []
    assert SqliteStore(home).clusters() == []


def test_a_newer_store_is_left_alone(home: SkyHome, store: SqliteStore) -> None:
    """The error says both versions, and not a byte changes."""
    store.begin_launch(cluster_record())
    store.close()
    connection = sqlite3.connect(home.state_db)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = home.state_db.read_bytes()
    with pytest.raises(MigrationError) as caught:
        SqliteStore(home).begin_launch(cluster_record("other"))
    assert (caught.value.ours, caught.value.theirs) == (SCHEMA_VERSION, 99)
    assert str(SCHEMA_VERSION) in str(caught.value)
    assert "99" in str(caught.value)
    assert home.state_db.read_bytes() == before


def test_a_newer_store_in_the_old_journal_mode_is_left_alone(home: SkyHome) -> None:
    """Not even its journal mode is changed."""
    home.root.mkdir()
    connection = sqlite3.connect(home.state_db)
    connection.execute("CREATE TABLE later (x)")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(MigrationError):
        SqliteStore(home).clusters()
    assert _ask(home, "PRAGMA journal_mode") == [("delete",)]


def test_a_document_of_a_newer_schema_is_an_error(home: SkyHome, store: SqliteStore) -> None:
    """It is not read as what it is not."""
    store.begin_launch(cluster_record())
    connection = sqlite3.connect(home.state_db)
    connection.execute("UPDATE clusters SET schema = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StateError, match="schema 99"):
        store.clusters()


def test_documents_are_json_and_nothing_is_binary(home: SkyHome, store: SqliteStore) -> None:
    """Every value in every table is a number, a text or null."""
    store.begin_launch(cluster_record())
    store.begin_intent("launch", "train", {"a": 1})
    store.config_set("key", [1])
    for (table,) in _ask(home, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        for row in _ask(home, f'SELECT * FROM "{table}"'):
            assert not any(isinstance(value, bytes) for value in row)


def test_a_locked_store_is_waited_for(home: SkyHome, store: SqliteStore) -> None:
    """A writer that takes its time delays others, it does not fail them."""
    store.clusters()
    other = sqlite3.connect(home.state_db, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert store.clusters() == []
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    store.begin_launch(cluster_record())
    timer.join()
    other.close()
    assert len(store.clusters()) == 1


def test_a_store_that_stays_locked_is_a_retryable_state_error(
    home: SkyHome, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never "database is locked" itself."""
    monkeypatch.setattr(connections_module, "_STATEMENT_WAIT_S", 0.05)
    monkeypatch.setattr(connections_module, "_BUSY_BOUND_S", 0.2)
    store.clusters()
    other = sqlite3.connect(home.state_db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match=r"was busy for 0\.2 s") as caught:
        store.begin_launch(cluster_record())
    assert caught.value.retryable
    other.close()


def test_connections_of_ended_threads_are_closed(store: SqliteStore) -> None:
    """A long-lived process that uses many threads does not gather connections."""
    for number in range(20):
        thread = threading.Thread(target=store.clusters)
        thread.start()
        thread.join()
    store.clusters()
    assert len(store._connections._open) <= 2


def test_a_fork_leaves_no_connection_to_the_child(home: SkyHome, store: SqliteStore) -> None:
    """The child's descriptors do not include the store before it uses it."""
    store.begin_launch(cluster_record())

    def in_child(child: Child) -> None:
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        open_files = [os.readlink(link) for link in links if link.is_symlink()]
        child.say(b"open" if any(file.startswith(str(home.state_db)) for file in open_files) else b"none")

    child = Child(in_child)
    assert child.heard() == b"none"
    assert child.ended() == 0


def test_closing_one_store_keeps_the_locks_of_another(home: SkyHome) -> None:
    """Two stores of one process on one file: a third that opens does not make the kernel drop the locks of the first.

    If it did, the last process to close would think itself alone and remove the log that the first still writes.
    """
    first = SqliteStore(home)
    first.begin_launch(cluster_record("a"))
    SqliteStore(home).clusters()

    first.clusters()
    code = (
        "import sys; from skylib.paths import SkyHome; from skylib.state.sqlite import SqliteStore\n"
        "store = SqliteStore(SkyHome(sys.argv[1])); store.clusters(); store.close()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code, str(home.root)], env=env, check=True)
    assert (home.root / "state.db-wal").exists()
    first.begin_launch(cluster_record("b"))
    assert len(SqliteStore(home).clusters()) == 2


def test_a_home_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    """It names what is in the way."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StateError, match="home is not a directory"):
        SqliteStore(SkyHome(tmp_path / "home")).clusters()


def test_reading_does_not_import_sqlite_utils(home: SkyHome, store: SqliteStore) -> None:
    """On a store that exists, status comes without it."""
    store.begin_launch(cluster_record())
    code = (
        "import sys; from skylib.paths import SkyHome; from skylib.state.sqlite import SqliteStore\n"
        "assert len(SqliteStore(SkyHome(sys.argv[1])).clusters()) == 1; print('sqlite_utils' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code, str(home.root)], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Connections to a home's file: one state for a reader, whole transactions for writers, and what a file system allows."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from skylib.errors import MigrationError, StateError
from skylib.events import Event, SkyWarning
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state.backend import Backend, Connection
from skylib.state.connections import Connections, _Opened
from tests.processes import Child, run_at_once
from tests.sftp_mount import sftp_folder

NFS = b"1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 0:30 / %s rw - nfs4 files.example.org:/home rw\n"


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


Open = Callable[..., Connections]


@pytest.fixture
def opened(home: SkyHome) -> Iterator[Open]:
    """Makes Connections, by default of `home`, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(of: SkyHome = home, **options: object) -> Connections:
            return stack.enter_context(closing(Connections(of, Locks(of), **options)))  # type: ignore[arg-type]

        yield make


def pragma(connection: Connection, name: str) -> object:
    return connection.rows(f"PRAGMA {name}")[0][0]


def journal_mode(connections: Connections) -> object:
    return connections.read(lambda db: pragma(db, "journal_mode"))


def put(connections: Backend, key: str, value: str = "1", *, durable: bool = True) -> None:
    sql = "INSERT INTO config VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    connections.write(lambda db: db.execute(sql, key, value), durable=durable)


def keys(connections: Backend) -> list[str]:
    return [key for (key,) in connections.read(lambda db: db.rows("SELECT key FROM config ORDER BY key"))]


def on_nfs(home: SkyHome) -> Callable[[], bytes]:
    return lambda: NFS % os.fsencode(home.root.parent)


# Transactions.


def test_a_reader_sees_one_state_throughout(opened: Open) -> None:
    """What another thread commits between two questions is not seen by the second."""
    connections = opened()
    put(connections, "a")

    def read(db: Connection) -> list[int]:
        def count() -> int:
            return int(db.rows("SELECT count(*) FROM config")[0][0])

        before = count()
        writer = threading.Thread(target=put, args=(connections, "b"))
        writer.start()
        writer.join(30)
        return [before, count()]

    assert connections.read(read) == [1, 1]
    assert keys(connections) == ["a", "b"]


def test_an_error_undoes_all(opened: Open) -> None:
    """Whatever it is, and the connection is good for the next transaction."""
    connections = opened()

    def write(db: Connection) -> None:
        db.execute("INSERT INTO config VALUES ('a', '1')")
        db.many("INSERT INTO config VALUES (?, ?)", [("b", "1"), ("c", "1")])
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        connections.write(write)
    with pytest.raises(StateError, match="UNIQUE"):
        connections.write(lambda db: db.many("INSERT INTO config VALUES (?, ?)", [("a", "1"), ("a", "1")]))
    assert keys(connections) == []
    put(connections, "d")
    assert keys(connections) == ["d"]


def test_how_much_is_synced_follows_each_write(opened: Open) -> None:
    """With a log: FULL for what must last, NORMAL for what can be observed again; set between transactions."""
    connections = opened()
    levels = [
        connections.write(lambda db: pragma(db, "synchronous"), durable=durable) for durable in (True, False, False, True)
    ]
    assert levels == [2, 1, 1, 2]
    assert connections.read(lambda db: pragma(db, "foreign_keys")) == 1


def test_writes_that_are_not_synced_outlive_the_process(home: SkyHome, opened: Open) -> None:
    """SIGKILL takes nothing that was committed."""

    def work(child: Child) -> None:
        connections = Connections(home, Locks(home))
        put(connections, "a", durable=False)
        child.say(b"done")
        child.wait_for_go()

    child = Child(work)
    assert child.heard() == b"done"
    child.kill()
    child.ended()
    assert keys(opened()) == ["a"]


def test_counting_in_eight_processes_loses_nothing(home: SkyHome, opened: Open) -> None:
    """Read, then write, in one transaction: the sum is exact, synced or not."""

    def work() -> bytes:
        with closing(Connections(home, Locks(home))) as connections:
            for number in range(25):

                def step(db: Connection) -> None:
                    rows = db.rows("SELECT value FROM config WHERE key = 'n'")
                    value = str(int(rows[0][0]) + 1 if rows else 1)
                    db.execute("INSERT INTO config VALUES ('n', ?) ON CONFLICT (key) DO UPDATE SET value = ?", value, value)

                connections.write(step, durable=number % 2 == 0)
        return b"ok"

    run_at_once([work] * 8)
    assert opened().read(lambda db: db.rows("SELECT value FROM config")) == [("200",)]


def test_a_name_with_odd_letters_is_no_trouble(tmp_path: Path, opened: Open) -> None:
    """SQLite takes the path as an URI: what means something in one is part of the name."""
    home = SkyHome(tmp_path / "a home?mode=memory&x=%41#part 'ö'")
    connections = opened(home)
    put(connections, "a")
    assert home.state_db.exists()
    assert connections.where == str(home.state_db)


def test_nothing_is_left_of_making_a_store(home: SkyHome, opened: Open) -> None:
    """Eight processes make it at once: one file, and what a killed maker left does not disturb."""
    home.root.mkdir(mode=0o700)
    (home.root / ".state.db.new").write_bytes(b"left")
    (home.root / ".state.db.new-journal").write_bytes(b"left")

    def work() -> bytes:
        with closing(Connections(home, Locks(home))) as connections:
            put(connections, str(os.getpid()))
        return b"ok"

    run_at_once([work] * 8)
    assert len(keys(opened())) == 8
    assert [path.name for path in home.root.iterdir() if path.name.startswith(".")] == []


class _Interrupted:
    """What a Ctrl-C while SQLite closes looks like from here."""

    in_transaction = False

    def close(self) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_close_shuts_nobody_out(opened: Open) -> None:
    """Whatever closing one connection raises: the others are closed, and all threads may go on."""
    connections = opened()
    put(connections, "a")
    (mine,) = connections._open.values()
    busy = _Opened(_Interrupted(), mine.file, True)  # type: ignore[arg-type]
    connections._open = {threading.Thread(): busy, **connections._open}
    with pytest.raises(KeyboardInterrupt):
        connections.close()
    with pytest.raises(sqlite3.ProgrammingError):
        mine.raw.execute("SELECT 1")
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(keys(connections)), daemon=True)
    asking.start()
    asking.join(20)
    assert found == [["a"]]


# File systems.


def test_a_network_home_has_no_log_and_warns_once(home: SkyHome, opened: Open) -> None:
    """By threads and reopenings of one client once; an event says the same."""
    events: list[Event] = []
    connections = opened(mounts=on_nfs(home), events=events.append)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        put(connections, "a")
        thread = threading.Thread(target=put, args=(connections, "b"))
        thread.start()
        thread.join(30)
        connections.close()
        put(connections, "c", durable=False)
    assert [warning.category for warning in caught] == [SkyWarning]
    for word in (str(home.root), "nfs4", "files.example.org:/home", "SKY_HOME"):
        assert word in str(caught[0].message)
    assert [(event.step, event.facts["kind"]) for event in events] == [("state.network_home", "nfs4")]
    assert journal_mode(connections) == "delete"
    assert keys(connections) == ["a", "b", "c"]
    assert not (home.root / "state.db-wal").exists()


def test_two_clients_of_one_process_warn_once(home: SkyHome, opened: Open) -> None:
    """Whatever the filters are, and whoever changes them in between; each client's events say it."""
    events: list[Event] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            put(opened(mounts=on_nfs(home), events=events.append), "a")
    assert len(caught) == 1
    assert len(events) == 2


@pytest.mark.filterwarnings("ignore::skylib.events.SkyWarning")
def test_without_a_log_every_write_is_synced_whole(home: SkyHome, opened: Open) -> None:
    """Less could leave half a transaction there."""
    connections = opened(mounts=on_nfs(home))
    levels = [connections.write(lambda db: pragma(db, "synchronous"), durable=durable) for durable in (True, False)]
    assert levels == [3, 3]


@pytest.mark.filterwarnings("ignore::skylib.events.SkyWarning")
def test_a_log_is_left_when_the_home_comes_to_a_network(home: SkyHome, opened: Open) -> None:
    """What is in the log of a killed process is in the file then; back on a disk, there is a log again."""

    def work(child: Child) -> None:
        put(Connections(home, Locks(home)), "in the log")
        child.say(b"done")
        child.wait_for_go()

    child = Child(work)
    assert child.heard() == b"done"
    child.kill()
    child.ended()
    assert (home.root / "state.db-wal").stat().st_size > 0
    with closing(Connections(home, Locks(home), mounts=on_nfs(home))) as shared:
        assert keys(shared) == ["in the log"]
        assert journal_mode(shared) == "delete"
        put(shared, "after")
    connections = opened()
    assert keys(connections) == ["after", "in the log"]
    assert journal_mode(connections) == "wal"


@pytest.mark.filterwarnings("ignore::skylib.events.SkyWarning")
def test_a_log_that_is_in_use_is_waited_for(home: SkyHome, opened: Open) -> None:
    """Nobody's log is taken away; when they end, the log ends."""

    def work(child: Child) -> None:
        with closing(Connections(home, Locks(home))) as connections:
            put(connections, "theirs")
            child.say(b"open")
            child.wait_for_go()
            put(connections, "more")

    child = Child(work)
    assert child.heard() == b"open"
    shared = opened(mounts=on_nfs(home))
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(keys(shared)))
    asking.start()
    asking.join(0.5)
    assert found == []
    child.go()
    assert child.ended() == 0
    asking.join(30)
    assert found == [["more", "theirs"]]
    assert journal_mode(shared) == "delete"


@pytest.mark.filterwarnings("ignore::skylib.events.SkyWarning")
def test_a_newer_store_on_a_network_is_left_alone(home: SkyHome, opened: Open) -> None:
    """With its log."""
    connections = opened()
    put(connections, "a")
    connections.write(lambda db: db.execute("PRAGMA user_version = 99"))
    connections.close()
    before = home.state_db.read_bytes()
    with pytest.raises(MigrationError):
        keys(opened(mounts=on_nfs(home)))
    assert home.state_db.read_bytes() == before


def test_a_real_network_file_system_is_found_out(tmp_path: Path, opened: Open) -> None:
    """A home on sshfs: the warning names it, the store works, and what it wrote is at the server, without a log."""
    with sftp_folder(tmp_path):
        home = SkyHome(tmp_path / "mounted" / ".sky")
        with closing(Connections(home, Locks(home))) as connections:
            with pytest.warns(SkyWarning, match=r"fuse\.sshfs, testhost:"):
                put(connections, "a")
            put(connections, "b")
            assert journal_mode(connections) == "delete"
            assert keys(connections) == ["a", "b"]
    with closing(sqlite3.connect(tmp_path / "served" / ".sky" / "state.db")) as served:
        assert served.execute("SELECT count(*) FROM config").fetchone() == (2,)


def test_a_file_system_that_cannot_have_a_log_is_got_on_with(tmp_path: Path) -> None:
    """One that is not known as a network's, without memory that its users share: SQLite says so when it is late."""
    with sftp_folder(tmp_path, options=",direct_io"):
        home = SkyHome(tmp_path / "mounted" / ".sky")
        with closing(Connections(home, Locks(home), mounts=lambda: b"")) as connections:
            put(connections, "a")
            thread = threading.Thread(target=put, args=(connections, "b"))
            thread.start()
            thread.join(30)
            assert keys(connections) == ["a", "b"]
            assert journal_mode(connections) == "delete"

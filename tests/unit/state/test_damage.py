"""Damage: told from other troubles, moved aside once, never deleted; everybody goes on with a new store."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from skylib.errors import StateError, StoreDamaged
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state import damage
from skylib.state.connections import Connections
from skylib.state.sqlite import SqliteStore
from tests.processes import Child, run_at_once
from tests.records import cluster_record

RUBBISH = {
    "no database": b"no database at all" * 100,
    "rubbish after the header": b"SQLite format 3\x00" + b"rubbish" * 1000,
    "empty": b"",
    "a few bytes": b"SQLite format 3\x00",
    "zeros": bytes(40_960),
}


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


@pytest.fixture
def store(home: SkyHome) -> Iterator[SqliteStore]:
    with closing(SqliteStore(home, clock=lambda: 1_795_445_400.0)) as made:
        yield made


def names_in(home: SkyHome) -> list[str]:
    return sorted(path.name for path in home.root.iterdir() if path.name not in ("locks", "state.db-wal", "state.db-shm"))


def spoil(path: Path, *, first_byte: int = 4096) -> None:
    """Overwrite all from `first_byte` on. In a child: this process must not close the file beside SQLite."""

    def work(child: Child) -> None:
        with path.open("r+b") as file:
            file.seek(first_byte)
            file.write(b"\xff" * max(4096, path.stat().st_size - first_byte))

    assert Child(work).ended() == 0


def filled(home: SkyHome, count: int = 30) -> None:
    """A store with clusters, closed: all of it is in the main file."""
    with closing(SqliteStore(home)) as store:
        for number in range(count):
            record = cluster_record(f"c{number}")
            store.begin_launch(record)
            store.claim_hosts("ssh/lab", [f"h{number}"], record.name, record.cluster_id, 1.0)


@pytest.mark.parametrize("content", RUBBISH.values(), ids=RUBBISH.keys())
def test_rubbish_is_moved_aside_as_it_is(home: SkyHome, store: SqliteStore, content: bytes) -> None:
    """The error says where it went and how to go on; the next call works on a new store; not a byte is lost."""
    home.root.mkdir()
    home.state_db.write_bytes(content)
    with pytest.raises(StoreDamaged) as caught:
        store.clusters()
    saved = home.root / "state.db.damaged-20261123T145000Z"
    assert caught.value.saved == (str(saved),)
    assert saved.read_bytes() == content
    for word in ('client.discover("ssh/<pool>")', "client.adopt(name)", f"sqlite3 {saved} .recover", "nothing was deleted"):
        assert word in str(caught.value)
    assert store.clusters() == []
    store.begin_launch(cluster_record())
    assert names_in(home) == ["state.db", saved.name]


def test_a_second_damage_in_the_same_second_has_a_name_of_its_own(home: SkyHome, store: SqliteStore) -> None:
    """Nothing is overwritten."""
    home.root.mkdir()
    for content in (b"one" * 1000, b"two" * 1000):
        home.state_db.unlink(missing_ok=True)
        home.state_db.write_bytes(content)
        with pytest.raises(StoreDamaged):
            store.clusters()
    assert (home.root / "state.db.damaged-20261123T145000Z").read_bytes() == b"one" * 1000
    assert (home.root / "state.db.damaged-20261123T145000Z.2").read_bytes() == b"two" * 1000


def test_what_can_still_be_read_is_told(home: SkyHome, store: SqliteStore) -> None:
    """Names of clusters and their hosts, where damage left them; the saved file gives them to the hint's command, too."""
    filled(home)
    with closing(sqlite3.connect(home.state_db)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'cluster_history'").fetchone()
    with home.state_db.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert len(store.clusters()) == 30, "what is whole can be read"
    with pytest.raises(StoreDamaged) as caught:
        store.history()
    assert caught.value.clusters == {f"c{number}": (f"ssh/lab: h{number}",) for number in range(30)}
    assert "c7 (ssh/lab: h7)" in str(caught.value)
    with closing(sqlite3.connect(caught.value.saved[0])) as connection:
        assert connection.execute("SELECT count(*) FROM clusters").fetchone() == (30,)


def left_by_a_killed_process(home: SkyHome, name: str) -> None:
    """A store with a cluster that is in its log alone."""

    def work(child: Child) -> None:
        SqliteStore(home).begin_launch(cluster_record(name))
        child.say(b"done")
        child.wait_for_go()

    child = Child(work)
    assert child.heard() == b"done"
    child.kill()
    child.ended()


def test_the_log_goes_with_the_file(home: SkyHome, store: SqliteStore) -> None:
    """A killed process left its log: file, log and index are kept together under one name, not a byte of them changed."""
    filled(home, 100)
    left_by_a_killed_process(home, "last")
    spoil(home.state_db, first_byte=3 * 4096)
    content, log = (home.root / "state.db").read_bytes(), (home.root / "state.db-wal").read_bytes()
    with pytest.raises(StoreDamaged) as caught:
        store.history()
    saved = [Path(path) for path in caught.value.saved]
    assert [path.name for path in saved] == [f"state.db.damaged-20261123T145000Z{end}" for end in ("", "-wal", "-shm")]
    assert (saved[0].read_bytes(), saved[1].read_bytes()) == (content, log)
    assert store.clusters() == []


def test_a_log_without_its_file_is_not_the_next_files_log(home: SkyHome) -> None:
    """Somebody removed state.db alone: its log is put aside, the new store is empty."""

    left_by_a_killed_process(home, "old")
    home.state_db.unlink()
    with closing(SqliteStore(home)) as store:
        assert store.clusters() == []
    assert len(list(home.root.glob("state.db.damaged-*-wal"))) == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_death_while_a_store_is_put_aside_leaves_no_older_one(home: SkyHome, number: int) -> None:
    """Killed before any of its renames: the store is whole at its name, or it is not there; never without its log."""
    filled(home)
    left_by_a_killed_process(home, "last")

    def move(child: Child) -> None:
        renames = iter(range(1, 10))

        def die(event: str, given: tuple[object, ...]) -> None:
            if event == "os.rename" and next(renames) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        damage.move_aside(home.state_db, at=0.0)

    assert Child(move).ended() == -signal.SIGKILL
    with closing(SqliteStore(home)) as store:
        found = {record.name for record in store.clusters()}
    assert found == ({"last", *(f"c{each}" for each in range(30))} if number == 1 else set())
    kept = {path.name.partition("Z")[2] for path in home.root.glob("state.db.damaged-*")}
    assert kept == (set() if number == 1 else {"", "-wal", "-shm"})


@pytest.mark.parametrize("opened_before", [False, True])
def test_eight_processes_see_the_damage_and_one_moves_the_store(home: SkyHome, opened_before: bool) -> None:
    """Whether they open it at that moment or have it open: one copy, and all then work on one new store."""
    filled(home, 100)

    def work(child: Child) -> None:
        store = SqliteStore(home)
        if opened_before:
            assert store.claims()
        child.say(b"ready")
        child.wait_for_go()
        told = b"unseen"
        try:
            store.history()
        except StoreDamaged as error:
            told = b"told" if error.saved else b"no copy"
        child.say(told)
        child.wait_for_go()
        store.begin_launch(cluster_record(f"new-{os.getpid()}"))
        child.say(b"written")
        child.wait_for_go()
        assert len(store.clusters()) == 8

    children = [Child(work) for _ in range(8)]
    assert [child.heard() for child in children] == [b"ready"] * 8
    spoil(home.state_db, first_byte=3 * 4096)
    for child in children:
        child.go()
    told = {child.heard() for child in children}
    for expected in (b"written", b""):
        for child in children:
            child.go()
        assert {child.heard() for child in children} == {expected}
    assert [child.ended() for child in children] == [0] * 8
    assert b"told" in told
    assert told <= {b"told", b"unseen"}
    assert len([path for path in home.root.glob("state.db.damaged-*") if path.name.endswith("Z")]) == 1


def test_threads_of_one_client_see_the_damage_together(home: SkyHome, store: SqliteStore) -> None:
    """One copy; whoever saw it is told where it is; all go on with the new store."""
    filled(home, 100)
    together = threading.Barrier(8)

    def work(number: int) -> tuple[str, ...]:
        saved: tuple[str, ...] = ()
        assert store.claims()
        together.wait(30)
        if number == 0:
            spoil(home.state_db, first_byte=3 * 4096)
        together.wait(30)
        try:
            store.history()
        except StoreDamaged as error:
            saved = error.saved
        together.wait(30)
        store.begin_launch(cluster_record(f"new-{number}"))
        return saved

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(work, range(8))) - {()}
    assert len({saved[0] for saved in told}) == 1
    assert len(store.clusters()) == 8


def test_a_healthy_store_that_came_in_between_stays(home: SkyHome) -> None:
    """Who saw damage and then finds another file at the path moves nothing, and tells where the damaged one is."""
    filled(home)
    locks = Locks(home)
    caught: list[BaseException] = []
    seen = threading.Event()

    def look() -> None:
        store = SqliteStore(home, locks=_Told(home, seen.set))
        try:
            store.clusters()
        except StoreDamaged as error:
            caught.append(error)

    spoil(home.state_db)
    with locks.hold("store", operation="test"):
        looking = threading.Thread(target=look)
        looking.start()
        assert seen.wait(30)
        damage.move_aside(home.state_db, at=0.0)
        other = SkyHome(home.root.parent / "other")
        filled(other, 3)
        shutil.copy(other.state_db, home.state_db)
    looking.join(30)
    assert [error.saved[0] for error in caught if isinstance(error, StoreDamaged)] == [
        str(home.root / "state.db.damaged-19700101T000000Z")
    ]
    with closing(SqliteStore(home)) as store:
        assert len(store.clusters()) == 3


class _Told(Locks):
    """Locks that tell when they are asked for."""

    def __init__(self, home: SkyHome, tell: Callable[[], None]) -> None:
        super().__init__(home)
        self._tell = tell

    def hold(self, scope: str, **options: object):  # type: ignore[no-untyped-def, override]
        self._tell()
        return super().hold(scope, **options)  # type: ignore[arg-type]


def test_a_second_look_at_a_whole_store_moves_nothing(home: SkyHome) -> None:
    """It says that it is whole."""
    filled(home)
    with damage.second_look(home.state_db) as wrong:
        assert wrong is None


def test_damage_in_one_home_is_none_of_another(tmp_path: Path) -> None:
    """Two homes in one process: one is spoiled, the other goes on with the same connections."""
    left, right = SkyHome(tmp_path / "left"), SkyHome(tmp_path / "right")
    with closing(SqliteStore(left)) as one, closing(SqliteStore(right)) as other:
        filled(left)
        other.begin_launch(cluster_record("b"))
        spoil(left.state_db, first_byte=0)
        with pytest.raises(StoreDamaged):
            one.clusters()
        assert [record.name for record in other.clusters()] == ["b"]
        assert names_in(right) == ["state.db"]


# What is no damage.


def test_a_busy_store_is_not_damaged(home: SkyHome, store: SqliteStore) -> None:
    """It stays where it is."""
    filled(home)
    with closing(sqlite3.connect(home.state_db, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not damage.is_damage(sqlite3.OperationalError("database is locked"))
        assert len(store.clusters()) == 30
    assert names_in(home) == ["state.db"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_disk_is_not_damage(tmp_path: Path) -> None:
    """The error names it, what was written before can be read, and room makes it work again."""
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "small"], check=True)
    try:
        home = SkyHome(tmp_path / "small" / "home")
        with closing(SqliteStore(home)) as store:
            store.begin_launch(cluster_record())
            ballast = home.root.parent / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            with pytest.raises(StateError, match="no room to write") as caught:
                store.config_set("big", "x" * 1_000_000)
            assert not isinstance(caught.value, StoreDamaged)
            assert len(store.clusters()) == 1
            ballast.unlink()
            store.begin_launch(cluster_record("more"))
            assert len(store.clusters()) == 2
        assert names_in(home) == ["state.db"]
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account")
def test_a_home_that_takes_no_writes_keeps_its_damaged_store() -> None:
    """An ordinary account without the right to rename: the error says so, and nothing is lost."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home = SkyHome(Path(folder, "home"))
        home.locks.mkdir(parents=True)
        (home.locks / "store.lock").touch()
        home.state_db.write_bytes(b"no database" * 1000)
        for path in (home.root, home.locks, home.locks / "store.lock", home.state_db):
            os.chown(path, 54321, 54321)
        home.root.chmod(0o500)

        def work(child: Child) -> None:
            os.setuid(54321)
            try:
                SqliteStore(home).clusters()
            except StateError as error:
                child.say(f"{type(error).__name__} {error}".encode())

        child = Child(work)
        heard = child.heard().decode()
        assert child.ended() == 0
        assert heard.startswith("StateError ")
        assert "could not be moved aside" in heard
        assert names_in(home) == ["state.db"]


# The file under open connections.


def test_a_home_that_is_made_anew_is_noticed(home: SkyHome, store: SqliteStore) -> None:
    """Another process deletes the home and makes it again: the next call is about the new store, and keeps its log."""
    store.begin_launch(cluster_record("before"))

    def renew(child: Child) -> None:
        shutil.rmtree(home.root)
        fresh = SqliteStore(home)
        fresh.begin_launch(cluster_record("after"))
        child.say(b"made")
        child.wait_for_go()
        fresh.begin_launch(cluster_record("later"))

    child = Child(renew)
    assert child.heard() == b"made"
    assert [record.name for record in store.clusters()] == ["after"]
    store.begin_launch(cluster_record("mine"))
    child.go()
    assert child.ended() == 0
    assert {record.name for record in store.clusters()} == {"after", "mine", "later"}


def test_closing_what_was_moved_leaves_the_new_stores_log(home: SkyHome, store: SqliteStore) -> None:
    """SQLite removes a log by its name; not when the file is no longer the one that it opened."""
    store.begin_launch(cluster_record("old"))
    with Locks(home).hold("store", operation="test"):
        damage.move_aside(home.state_db, at=0.0)
    run_at_once([lambda: str(SqliteStore(home).begin_launch(cluster_record("new")).name).encode()])
    log = home.root / "state.db-wal"
    assert log.stat().st_size > 0
    store.close()
    assert log.stat().st_size > 0
    assert [record.name for record in store.clusters()] == ["new"]


def test_reading_what_another_process_moved_says_nothing(home: SkyHome) -> None:
    """Only who saw the damage is told; others find the new store."""
    filled(home)
    with closing(Connections(home, Locks(home))) as connections:
        assert connections.read(lambda db: db.rows("SELECT count(*) FROM clusters")) == [(30,)]
        with Locks(home).hold("store", operation="test"):
            damage.move_aside(home.state_db, at=0.0)
        assert connections.read(lambda db: db.rows("SELECT count(*) FROM clusters")) == [(0,)]

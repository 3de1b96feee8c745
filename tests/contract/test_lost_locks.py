"""Locks in a database that breaks: what is lost, what is not, and that nothing is written under a lost one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from skylib.errors import DatabaseUnreachable, LockLost, LockTimeout, StateError
from skylib.locks import Locks
from skylib.models.cluster import ClusterStatus
from skylib.paths import SkyHome
from skylib.state.advisory import AdvisoryKeeper
from skylib.state.pg_connections import PgConnections
from skylib.state.postgres import PostgresStore
from tests.pg_proxy import CuttingProxy, TransactionPooler
from tests.postgres import Server, running_server
from tests.processes import Child
from tests.records import cluster_record

Opener = Callable[..., Locks]


@pytest.fixture
def open_locks(tmp_path: Path) -> Iterator[Opener]:
    opened: list[Locks] = []

    def opener(url: str, **options: float) -> Locks:
        opened.append(Locks(SkyHome(tmp_path), keeper=AdvisoryKeeper(url, **options)))  # type: ignore[arg-type]
        return opened[-1]

    yield opener
    for locks in opened:
        locks.close()


@pytest.fixture
def proxy(postgres: Server) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: CuttingProxy, postgres: Server, database: str) -> str:
    """The database's URL through the proxy."""
    return database.replace(f":{postgres.port}/", f":{proxy.port}/")


def test_a_broken_connection_alone_loses_no_lock(proxy: CuttingProxy, through: str, open_locks: Opener) -> None:
    """Nobody has had it since: it is taken again, and the holder stays named."""
    locks = open_locks(through)
    with locks.hold("cluster:a", operation="launch") as grip:
        proxy.cut_all()
        grip.check()
        with pytest.raises(LockTimeout), open_locks(through).hold("x", operation="x"):
            with open_locks(through).hold("x", operation="other", timeout_s=0):
                pass
        proxy.cut_all()
    with open_locks(through).hold("cluster:a", operation="down", timeout_s=5):
        pass


def test_a_lock_that_another_has_taken_is_lost(
    proxy: CuttingProxy, database: str, through: str, open_locks: Opener
) -> None:
    """The holder is told when it asks, and at the end of its block: who took it, and that the lock did not last."""
    locks = open_locks(through)
    began = time.time()
    with pytest.raises(LockLost, match="was lost") as caught:  # noqa: PT012
        with locks.hold("cluster:a", operation="launch") as grip:
            proxy.cut_all()
            with open_locks(database).hold("cluster:a", operation="down", timeout_s=20):
                with pytest.raises(LockLost, match="down"):
                    grip.check()
            with pytest.raises(LockLost):
                grip.check()
    assert caught.value.scope == "cluster:a"
    assert caught.value.holder.operation == "down"
    assert began <= caught.value.since <= caught.value.lost_at <= time.time()
    with locks.hold("cluster:a", operation="launch", timeout_s=5):
        pass


def test_an_error_of_the_block_goes_before_the_loss(
    proxy: CuttingProxy, database: str, through: str, open_locks: Opener
) -> None:
    """It is what the caller has to know first."""
    with pytest.raises(KeyError):  # noqa: PT012
        with open_locks(through).hold("cluster:a", operation="launch"):
            proxy.cut_all()
            with open_locks(database).hold("cluster:a", operation="down", timeout_s=20):
                pass
            raise KeyError("mine")


def test_nothing_is_written_under_a_lost_lock(
    proxy: CuttingProxy, database: str, through: str, open_locks: Opener
) -> None:
    """The store refuses its operation's writes, and takes those of others and later ones."""
    store = PostgresStore(through)
    record = store.begin_launch(cluster_record("a"))
    with pytest.raises(LockLost):  # noqa: PT012
        with open_locks(database).hold("cluster:b", operation="launch"):
            with open_locks(database, bound_s=5).hold("cluster:c", operation="launch"):
                pass
            with open_locks(through).hold("cluster:a", operation="launch"):
                store.settle("a", ClusterStatus.UP, at=2.0)
                proxy.cut_all()
                store.settle("a", ClusterStatus.INIT, at=3.0)  # nobody has had the lock yet
                with open_locks(database).hold("cluster:a", operation="down", timeout_s=20):
                    with pytest.raises(LockLost):
                        store.settle("a", ClusterStatus.STOPPED, at=4.0)
                with pytest.raises(LockLost):
                    store.remove_cluster("a", at=5.0)
                found = store.cluster("a")
                assert found is not None
                assert (found.status, found.cluster_id) == (ClusterStatus.INIT, record.cluster_id)
    store.settle("a", ClusterStatus.UP, at=6.0)
    store.close()


def test_a_second_life_of_the_server_keeps_locks_apart(open_locks: Opener) -> None:
    """Killed and started while a lock is held: its holder has it still, another process waits; one that died is free."""
    with running_server() as server:
        url = server.new_database()
        locks = open_locks(url)
        with locks.hold("cluster:a", operation="launch") as grip:
            server.kill()
            server.start()
            grip.check()

            def wait(child: Child) -> None:
                try:
                    with open_locks(url).hold("cluster:a", operation="down", timeout_s=0):
                        child.say(b"held")
                except Exception as error:
                    child.say(f"{type(error).__name__} {error}".encode())

            child = Child(wait)
            said = child.heard()
            assert child.ended() == 0
            assert said.startswith(b"ClusterBusy")
            assert b"launch" in said
        with open_locks(url).hold("cluster:a", operation="down", timeout_s=5):
            pass


def test_a_database_that_is_away_gives_no_lock(open_locks: Opener) -> None:
    """DatabaseUnreachable within the bound when it is taken; when it is away at the release, nobody knows: LockLost."""
    with running_server() as server:
        locks = open_locks(server.new_database(), bound_s=0.4)
        with pytest.raises(LockLost, match="may have held it"):  # noqa: PT012
            with locks.hold("cluster:a", operation="launch") as grip:
                server.kill()
                with pytest.raises(DatabaseUnreachable):
                    grip.check()
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable):
            with locks.hold("cluster:a", operation="launch"):
                pass
        assert time.monotonic() - began < 10
        assert locks.holder("cluster:a") is None
        server.start()
        with locks.hold("cluster:a", operation="launch", timeout_s=0):
            pass


def test_a_holder_that_is_stopped_keeps_its_lock(database: str, open_locks: Opener) -> None:
    """It lives: who waits is told who it is. Killed, it is free at once."""

    def hold(child: Child) -> None:
        with open_locks(database).hold("cluster:a", operation="launch"):
            child.say(b"held")
            child.wait_for_go()

    child = Child(hold)
    assert child.heard() == b"held"
    locks = open_locks(database)
    holder = locks.holder("cluster:a")
    assert holder is not None
    assert (holder.pid, holder.operation) == (child.pid, "launch")
    child.kill()
    child.ended()
    with locks.hold("cluster:a", operation="down", timeout_s=10):
        pass


@pytest.mark.parametrize("at", [b"INSERT INTO lock_holders", b"COMMIT\0"])
def test_a_connection_that_breaks_while_a_lock_is_taken_does_not_keep_it(
    proxy: CuttingProxy, through: str, open_locks: Opener, at: bytes
) -> None:
    """The server has not seen that it broke: what it still holds for us is ended, and nobody is busy."""
    locks = open_locks(through)
    with locks.hold("x", operation="first"):
        pass
    proxy.at = at
    proxy.arm("silent")
    with locks.hold("cluster:a", operation="launch", timeout_s=0):
        holder = locks.holder("cluster:a")
        assert holder is not None
        assert holder.operation == "launch"
    assert proxy.cuts == 1


def _end_statement(server: Server, database: str, words: str) -> None:
    """What an administrator, or a limit of the server, does to a statement that waits."""
    deadline = time.monotonic() + 30
    sql = (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
        "WHERE datname = %s AND wait_event_type = 'Lock' AND query LIKE %s"
    )
    while not server.run(sql, database.rpartition("/")[2], f"%{words}%"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_release_that_the_server_ends_frees_the_lock(postgres: Server, database: str, open_locks: Opener) -> None:
    """Its connection goes, and the lock with it; nobody has had it, so nothing is lost."""
    locks = open_locks(database)
    ended: list[None] = []
    with psycopg.connect(database) as other:
        with locks.hold("cluster:a", operation="launch"):
            other.execute("UPDATE skylib.lock_holders SET backend = backend")
            ending = threading.Thread(
                target=lambda: ended.append(_end_statement(postgres, database, "UPDATE lock_holders SET backend = 0"))
            )
            ending.start()
        ending.join(30)
        assert ended == [None]
        other.rollback()
    with open_locks(database).hold("cluster:a", operation="down", timeout_s=5):
        pass
    with locks.hold("cluster:a", operation="launch", timeout_s=5):
        pass


def test_a_limit_of_the_role_ends_no_statement(postgres: Server, database: str, open_locks: Opener) -> None:
    """Its statement_timeout and lock_timeout are not ours."""
    name = database.rpartition("/")[2]
    with open_locks(database).hold("x", operation="first"):
        pass
    for limit in ("statement_timeout", "lock_timeout"):
        postgres.run(sql.SQL("ALTER DATABASE {} SET {} = '300ms'").format(sql.Identifier(name), sql.SQL(limit)))
    locks = open_locks(database)
    with psycopg.connect(database) as other:
        with locks.hold("cluster:a", operation="launch"):
            other.execute("UPDATE skylib.lock_holders SET backend = backend")
            letting_go = threading.Timer(1.0, other.rollback)
            letting_go.start()
        letting_go.join(30)
    assert locks.holder("cluster:a") is None


def _pooled(pooler: TransactionPooler, database: str, postgres: Server) -> str:
    return database.replace(f":{postgres.port}/", f":{pooler.port}/")


def test_a_session_that_is_shared_gives_no_second_lock(postgres: Server, database: str, open_locks: Opener) -> None:
    """Behind a pooler in transaction mode the second client would have the same lock: it is told what is wrong."""
    with TransactionPooler(database, sessions=1) as pooler:
        url = _pooled(pooler, database, postgres)
        with open_locks(url).hold("cluster:a", operation="launch"):
            with pytest.raises(StateError, match="shared with others") as caught:
                with open_locks(url).hold("cluster:a", operation="down", timeout_s=0):
                    pass
    assert "pooler in transaction mode" in str(caught.value.hint)
    assert not isinstance(caught.value, LockTimeout)


def test_a_lock_is_not_taken_in_somebody_elses_session(postgres: Server, database: str, open_locks: Opener) -> None:
    """A pooler that gives each transaction another session: told so, and none of them keeps the lock."""
    with TransactionPooler(database, sessions=3, in_turn=True) as pooler:
        with pytest.raises(StateError, match="shared with others"):
            with open_locks(_pooled(pooler, database, postgres)).hold("cluster:a", operation="launch"):
                pass
        with open_locks(database).hold("cluster:a", operation="down", timeout_s=5):
            pass


def test_a_lock_that_stays_in_a_poolers_session_is_ended(postgres: Server, database: str, open_locks: Opener) -> None:
    """What looked well when it was taken is told at the latest at the release; the lock is free then."""
    with TransactionPooler(database, sessions=2) as pooler:
        url = _pooled(pooler, database, postgres)
        with pytest.raises(StateError, match="shared with others"):  # noqa: PT012
            with open_locks(url).hold("cluster:a", operation="launch"):
                pooler.turn()
        with open_locks(database).hold("cluster:a", operation="down", timeout_s=5):
            pass


def test_the_same_lock_changes_hands_among_threads_that_are_cut(
    proxy: CuttingProxy, database: str, through: str, open_locks: Opener
) -> None:
    """6 threads on connections that break at random: what they write under the lock is never two's at once."""
    store = PostgresStore(through)
    store.config_set("n", 0)
    stop = threading.Event()
    made: list[int] = []
    failures: list[BaseException] = []

    def cut() -> None:
        while not stop.wait(0.1):
            proxy.cut_all()

    def work() -> None:
        locks = open_locks(through)
        for _ in range(5):
            try:
                with locks.hold("cluster:a", operation="count", timeout_s=60):
                    before = store.config_get("n")
                    time.sleep(0.001)
                    store.config_set("n", int(str(before)) + 1)
                    made.append(1)
            except LockLost:
                pass
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    cutter = threading.Thread(target=cut)
    for thread in (cutter, *threads):
        thread.start()
    for thread in threads:
        thread.join(100)
    stop.set()
    cutter.join(10)
    assert failures == []
    assert store.config_get("n") == len(made)
    store.close()


def test_an_error_inside_is_not_kept_waiting_by_the_release(
    proxy: CuttingProxy, through: str, open_locks: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is gone is waited for once: by what failed, not again to look back at the lock."""
    tries: list[object] = []
    locks = open_locks(through, bound_s=20)

    def work() -> None:
        with locks.hold("config", operation="config"):
            monkeypatch.setattr(PgConnections, "trying", lambda *args, **options: tries.append(args))
            proxy.close()
            proxy.cut_all()
            raise KeyError("what failed")

    with pytest.raises(KeyError):
        work()
    assert tries == []
